"""A vision-language model that embeds image, text, or both in one pass.

Qwen3-VL-Embedding (arXiv 2601.04720), GME-Qwen2-VL (arXiv 2412.16855), Ops-MM-embedding, VLM2Vec (arXiv 2410.05160,
2507.04590), E5-V (arXiv 2407.12580), LamRA (arXiv 2412.01720), and UNITE (arXiv 2505.19650).
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cirrus_client.bundle import DType, TensorSpec
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.errors import ExportError
from cirrus_client.names import EnsembleName, TensorName
from cirrus_export.backbones.backbone import Prompt, require
from cirrus_export.backbones.family import Sizes
from cirrus_export.backbones.vlm import VlmBackbone
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, token_ids, vector, vectors
from cirrus_export.heads.last_token import LastToken, WithoutImage
from cirrus_export.heads.prompts import Constants
from cirrus_export.recipes.recipe import Options, Parts, Recipe
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.wiring import ensemble
from cirrus_export.recipes.worded import Message, prompts, worded
from cirrus_export.recipes.wording import find_wording, wording_of

_LANGUAGE, _QUERY, _TEXT_QUERY, _TARGET = "language_model", "query_prompt", "text_query_prompt", "target_prompt"
_TEXT_ALONE = "text_ids"
log = logging.getLogger(__name__)


class VlmEmbedderOptions(Options):
    """How a task is worded, and how much of an embedding is kept.

    wording: a name of Cirrus's own, or a user's FILE.json; may be empty where the backbone has only one published one.
    query_instruction, text_instruction, target_instruction: take the place of the wording's own; without the second, a
    text alone has the wording's for it, or else the query's. dim: how many of the hidden state's first values are kept,
    since a matryoshka model may be cut; 0 keeps all.
    """

    wording: str = ""
    query_instruction: str = ""
    text_instruction: str = ""
    target_instruction: str = ""
    dim: int = Field(default=0, ge=0)


@register("vlm-embedder")
class VlmEmbedder(Recipe):
    """The hidden state of the last token of a message.

    Its wording is an option: a chat template up to where the assistant would answer, or VLM2Vec's plain words.
    Query and gallery share one language model in one graph. A gallery image is a message without a user's text.
    """

    works_on = (VlmBackbone,)
    needs_head = False
    options_type = VlmEmbedderOptions

    def __init__(self, parts: Parts, options: VlmEmbedderOptions) -> None:
        super().__init__(parts, options)
        self._backbone = require(parts.backbone, VlmBackbone, self.name)
        if options.dim > self._backbone.width:
            raise ExportError(f"--option dim={options.dim}: an embedding has {self._backbone.width} values")
        self._dim = options.dim or self._backbone.width
        self._wording = wording_of(options.wording, self._backbone.wordings).instructed(
            query=options.query_instruction, text=options.text_instruction, target=options.target_instruction
        )
        self._worded = worded(self._wording, self._backbone.tokenizer, self._backbone.image_word)
        self._prompts = prompts(self._worded, self.text_lengths[0])
        ending = (*self.prompt.suffix_ids, *self.prompt.cut_ids)
        if len(ending) + 2 >= self._backbone.context_length:
            raise ExportError(
                f"the wording has {len(ending)} tokens behind {{text}}, and a text with them may have "
                f"{self._backbone.context_length}: shorten it"
            )
        self._backbone.check_length(len(self._prompts.query))
        self._warn_of_other_prompts(options)

    @property
    def backbone(self) -> VlmBackbone:
        """The whole model."""
        return self._backbone

    @property
    def dim(self) -> int:
        """Number of values that are kept of the language model's width."""
        return self._dim

    @property
    def prompt(self) -> Prompt:
        """What of the wording is tokenized with a text, and what comes behind it."""
        return self._worded.prompt

    def instructions(self) -> dict[EnsembleName, str]:
        """Return the instructions that the wording says."""
        said = {
            EnsembleName.ENCODE_QUERY: self._wording.query_instruction,
            EnsembleName.ENCODE_TEXT_QUERY: self._wording.text_instruction,
            EnsembleName.ENCODE_TARGET: self._wording.target_instruction,
        }
        return {name: instruction for name, instruction in said.items() if instruction}

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """See `Recipe.check`. A wording is read before the weights are."""
        assert isinstance(options, VlmEmbedderOptions)
        wording_of(options.wording, sizes.wordings)

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return transformers' own pass over image and text."""
        return self._original(self._worded.query, pixels, token_ids)

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return transformers' own pass over a text."""
        if self._worded.text is None:
            return super().text_query(token_ids)
        ending = self._worded.text_ending
        alone = token_ids if ending is None else ending.put(token_ids)
        return self._original(Message(self._worded.text, ()), None, alone)

    def target(self, pixels: Tensor) -> Tensor:
        """Return transformers' own pass over an image."""
        no_text = torch.empty(pixels.shape[0], 0, dtype=torch.int64, device=pixels.device)
        return self._original(self._worded.target, pixels, no_text)

    def graphs(self) -> list[Graph]:
        """Return vision tower, language model, and what each task gives it to read."""
        return [
            *(self.backbone.vision_graph(), self._prompt_graph(_QUERY), self._prompt_graph(_TARGET)),
            *((self._text_query_graph(),) if self._wording.text else ()),
            self._language_graph(),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries of an image, with or without a text, of a text alone if it has a wording, and targets."""
        vision, language = self.backbone.vision_graph(), self._language_graph()
        wired = {
            EnsembleName.ENCODE_QUERY: ensemble(vision, self._prompt_graph(_QUERY), language),
            EnsembleName.ENCODE_TARGET: ensemble(vision, self._prompt_graph(_TARGET), language),
        }
        if self._wording.text:
            wired[EnsembleName.ENCODE_TEXT_QUERY] = ensemble(
                self._text_query_graph(), language, fed={TensorName.TOKEN_IDS: _TEXT_ALONE}
            )
        return wired

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the whole model."""
        return {"backbone": self.backbone.model}

    def pooling(self) -> str:
        """Return the pooling, with the instruction that a target is read with, or the message if it isn't the usual."""
        wording = self._wording
        published = self.backbone.wordings
        usual = bool(published) and wording.target == find_wording(published[0]).target
        worded = f"instruction {wording.target_instruction!r}" if usual else f"message {wording.message('target')!r}"
        counted = ", image tokens counted like words" if wording.counted_positions else ""
        return f"last token, first {self.dim} values, l2-normalised, {worded}{counted}{self.backbone.seeing}"

    def _warn_of_other_prompts(self, options: VlmEmbedderOptions) -> None:
        """Warn of what sentence-transformers reads a model with, where the user has not said what to read it with."""
        own, wording = self._backbone.own_prompts, self._wording
        for what, option, prompt, said in (
            ("queries", options.query_instruction, own.query, wording.query_instruction),
            ("documents", options.target_instruction, own.document, wording.target_instruction),
        ):
            if not option and prompt.strip() not in ("", said):
                log.warning(
                    "%s: sentence-transformers reads this model's %s with %r, and it is exported with %r: "
                    "--option query_instruction or target_instruction says another",
                    *(own.file, what, prompt, said),
                )

    def _original(self, message: Message, pixels: Tensor | None, token_ids: Tensor) -> Tensor:
        hidden = self.backbone.original(
            message.before, pixels, message.behind, token_ids, grid_positions=self._wording.grid_positions
        )
        return F.normalize(hidden[:, : self.dim], dim=-1)

    def _language_graph(self) -> Graph:
        backbone = self.backbone
        positions = backbone.positions(grid=self._wording.grid_positions)
        return Graph(
            _LANGUAGE,
            LastToken(backbone.model.language_model, backbone.axes, positions, self._prompts.before, self.dim),
            inputs=(*self._image_tokens(), *self._prompt(), token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def _prompt_graph(self, task: str) -> Graph:
        prompt = self._prompts.target if task == _TARGET else self._prompts.query
        text = (self._prompts.target_text,) if task == _TARGET else ()
        return Graph(
            task,
            Constants(prompt, (1,), *text),
            inputs=self._image_tokens(),
            outputs=(*self._prompt(), *(_ids(TensorName.TOKEN_IDS, len(ids)) for ids in text)),
        )

    def _text_query_graph(self) -> Graph:
        backbone, ending, texts = self.backbone, self._worded.text_ending, token_ids(self.text_lengths)
        return Graph(
            _TEXT_QUERY,
            WithoutImage(self._prompts.text, backbone.num_image_tokens, backbone.image_token_width, ending),
            inputs=(texts,),
            outputs=(
                *self._image_tokens(),
                *self._prompt(),
                *(() if ending is None else (texts.model_copy(update={"name": _TEXT_ALONE}),)),
            ),
            text_lengths=self.text_lengths,
        )

    def _image_tokens(self) -> tuple[TensorSpec, ...]:
        return (vectors("image_tokens", self.backbone.num_image_tokens, self.backbone.image_token_width),)

    def _prompt(self) -> tuple[TensorSpec, TensorSpec]:
        return _ids("prompt_ids", len(self._prompts.query)), _ids("image_mask", 1)


def _ids(name: str, length: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.INT64, shape=(length,))
