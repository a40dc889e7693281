"""A vision-language model that embeds image, text, or both in one pass.

Qwen3-VL-Embedding (arXiv 2601.04720), GME-Qwen2-VL (arXiv 2412.16855) and Ops-MM-embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cirrus_client.bundle import DType, TensorSpec
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.errors import ExportError
from cirrus_client.names import EnsembleName, TensorName
from cirrus_export.backbones.backbone import require
from cirrus_export.backbones.qwen_vl import QwenVlBackbone
from cirrus_export.graph import Graph, token_ids, vector, vectors
from cirrus_export.heads.prompts import Constants, padded
from cirrus_export.heads.qwen_vl import LastToken, WithoutImage
from cirrus_export.recipes.recipe import Options, Parts, Recipe
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.wiring import ensemble

_LANGUAGE, _QUERY, _TEXT_QUERY, _TARGET = "language_model", "query_prompt", "text_query_prompt", "target_prompt"


class VlmEmbedderOptions(Options):
    """How a task is worded, and how much of an embedding is kept.

    query_instruction, target_instruction: the system's message, as the published code of the backbone's generation
    words it; an empty one takes that code's own. dim: how many of the hidden state's first values are kept, since a
    matryoshka model may be cut; 0 keeps all.
    """

    query_instruction: str = ""
    target_instruction: str = ""
    dim: int = Field(default=0, ge=0)


@register("vlm-embedder")
class VlmEmbedder(Recipe):
    """The hidden state of the last token of Qwen's chat template, which ends where the assistant would answer.

    Query and gallery share one language model in one graph. A gallery image is a message without a text.
    """

    works_on = (QwenVlBackbone,)
    needs_head = False
    options_type = VlmEmbedderOptions

    def __init__(self, parts: Parts, options: VlmEmbedderOptions) -> None:
        super().__init__(parts, options)
        self._backbone = require(parts.backbone, QwenVlBackbone, self.name)
        if options.dim > self._backbone.width:
            raise ExportError(f"--option dim={options.dim}: an embedding has {self._backbone.width} values")
        self._dim = options.dim or self._backbone.width
        self._target_instruction = self._worded(options.target_instruction)
        self._query_prompt = self._backbone.prompt_ids(self._worded(options.query_instruction))
        self._target_prompt = self._backbone.prompt_ids(self._target_instruction)

    @property
    def backbone(self) -> QwenVlBackbone:
        """The whole model."""
        return self._backbone

    @property
    def dim(self) -> int:
        """Number of values that are kept of the language model's width."""
        return self._dim

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return transformers' own pass over image and text."""
        return self._kept(self.backbone.original(self._query_prompt, pixels, token_ids))

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return transformers' own pass over a text."""
        return self._kept(self.backbone.original(self._query_prompt, None, token_ids))

    def target(self, pixels: Tensor) -> Tensor:
        """Return transformers' own pass over an image."""
        suffix = pixels.new_tensor(self.backbone.suffix_ids).long().expand(pixels.shape[0], -1)
        return self._kept(self.backbone.original(self._target_prompt, pixels, suffix))

    def graphs(self) -> list[Graph]:
        """Return vision tower, language model, and what each task gives it to read."""
        return [
            *(self.backbone.vision_graph(), self._prompt_graph(_QUERY), self._prompt_graph(_TARGET)),
            *(self._text_query_graph(), self._language_graph()),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries of an image, with or without a text, of a text alone, and targets."""
        vision, language = self.backbone.vision_graph(), self._language_graph()
        return {
            EnsembleName.ENCODE_QUERY: ensemble(vision, self._prompt_graph(_QUERY), language),
            EnsembleName.ENCODE_TEXT_QUERY: ensemble(self._text_query_graph(), language),
            EnsembleName.ENCODE_TARGET: ensemble(vision, self._prompt_graph(_TARGET), language),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the whole model."""
        return {"backbone": self.backbone.model}

    def pooling(self) -> str:
        """Return the pooling, with the instruction that a target is read with."""
        return f"last token, first {self.dim} values, l2-normalised, instruction {self._target_instruction!r}"

    def _worded(self, instruction: str) -> str:
        return self.backbone.worded(instruction or self.backbone.default_instruction)

    def _kept(self, hidden: Tensor) -> Tensor:
        return F.normalize(hidden[:, : self.dim], dim=-1)

    def _language_graph(self) -> Graph:
        backbone = self.backbone
        return Graph(
            _LANGUAGE,
            LastToken(backbone.model.language_model, backbone.model.config, backbone.axes, backbone.grid, self.dim),
            inputs=(*self._image_tokens(), *self._prompt(), token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def _prompt_graph(self, task: str) -> Graph:
        text = padded(self.backbone.suffix_ids, self.text_lengths[0]) if task == _TARGET else None
        prompt = self._target_prompt if task == _TARGET else self._query_prompt
        of_text = () if text is None else (_ids(TensorName.TOKEN_IDS, len(text)),)
        return Graph(
            task,
            Constants(padded(prompt, self._prompt_length), (1,), *(() if text is None else (text,))),
            inputs=self._image_tokens(),
            outputs=(*self._prompt(), *of_text),
        )

    def _text_query_graph(self) -> Graph:
        backbone = self.backbone
        prompt = padded(self._query_prompt, self._prompt_length)
        return Graph(
            _TEXT_QUERY,
            WithoutImage(prompt, backbone.num_image_tokens, backbone.image_token_width),
            inputs=(token_ids(self.text_lengths),),
            outputs=(*self._image_tokens(), *self._prompt()),
            text_lengths=self.text_lengths,
        )

    @property
    def _prompt_length(self) -> int:
        return max(len(self._query_prompt), len(self._target_prompt))

    def _image_tokens(self) -> tuple[TensorSpec, ...]:
        return (vectors("image_tokens", self.backbone.num_image_tokens, self.backbone.image_token_width),)

    def _prompt(self) -> tuple[TensorSpec, TensorSpec]:
        return _ids("prompt_ids", self._prompt_length), _ids("image_mask", 1)


def _ids(name: str, length: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.INT64, shape=(length,))
