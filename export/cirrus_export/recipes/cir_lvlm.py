"""CIR-LVLM: a large vision-language model encodes queries and targets (arXiv 2412.11087)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_client.bundle import DType, TensorSpec
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.names import EnsembleName, TensorName
from cirrus_export.backbones.backbone import require
from cirrus_export.backbones.lvlm import LvlmBackbone
from cirrus_export.graph import Graph, token_ids, vector, vectors
from cirrus_export.heads.lvlm import Pooling, PromptedLanguage
from cirrus_export.heads.prompts import Constants, padded
from cirrus_export.recipes.recipe import Options, Parts, Recipe
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.wiring import ensemble

_LANGUAGE, _QUERY, _TARGET = "language_model", "query_prompt", "target_prompt"


class CirLvlmOptions(Options):
    """What the paper leaves open, and what is trained with it.

    query_prompt, target_prompt: the tasks' prompts in words; empty ones are those of the checkpoint's `config.json`.
    """

    query_prompt: str = ""
    target_prompt: str = ""
    pooling: Pooling = Pooling.POSITION_WEIGHTED


@register("cir-lvlm")
class CirLvlm(Recipe):
    """One pass over visual tokens, a task prompt, chosen soft prompts and the text, pooled over all of them.

    The paper leaves open the wording of its task prompts, the distance by which soft prompts are chosen and the weights
    of its mean. Here: prompts of the checkpoint or of an option, the cosine between the keys and the mean of an
    instance's visual tokens plus that of its words, and weights that grow with the place unless an option says
    otherwise. Queries and targets share one language model in one graph. A target is a task without a text.
    """

    works_on = (LvlmBackbone,)
    needs_head = False
    options_type = CirLvlmOptions

    def __init__(self, parts: Parts, options: CirLvlmOptions) -> None:
        super().__init__(parts, options)
        self._backbone = require(parts.backbone, LvlmBackbone, self.name)
        config = self._backbone.config
        self._pooling = options.pooling
        self._query_prompt = self._backbone.prompt_ids(options.query_prompt or config.query_prompt)
        self._target_prompt = self._backbone.prompt_ids(options.target_prompt or config.target_prompt)

    @property
    def backbone(self) -> LvlmBackbone:
        """The whole model, fine-tuned parts merged."""
        return self._backbone

    @property
    def dim(self) -> int:
        """Width of the language model."""
        return self.backbone.width

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return the query task's pass."""
        return self._embedded(pixels, self._query_prompt, token_ids)

    def target(self, pixels: Tensor) -> Tensor:
        """Return the target task's pass, without a text."""
        return self._embedded(pixels, self._target_prompt, None)

    def graphs(self) -> list[Graph]:
        """Return vision tower with connector, each task's prompt, and the language model."""
        return [
            *(self.backbone.vision_graph(), self._prompt_graph(_QUERY), self._prompt_graph(_TARGET)),
            self._language_graph(),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries, which need an image, and targets."""
        vision, language = self.backbone.vision_graph(), self._language_graph()
        return {
            EnsembleName.ENCODE_QUERY: ensemble(vision, self._prompt_graph(_QUERY), language),
            EnsembleName.ENCODE_TARGET: ensemble(vision, self._prompt_graph(_TARGET), language),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the whole model."""
        return {"backbone": self.backbone}

    def pooling(self) -> str:
        """Return the pooling, with the prompt that a target is read with."""
        return f"{self._pooling}, l2-normalised, target prompt {self._target_prompt}"

    def _embedded(self, pixels: Tensor, prompt: tuple[int, ...], token_ids: Tensor | None) -> Tensor:
        return F.normalize(self.backbone.embed(self.backbone(pixels), prompt, token_ids, self._pooling), dim=-1)

    def _language_graph(self) -> Graph:
        backbone = self.backbone
        return Graph(
            _LANGUAGE,
            PromptedLanguage(backbone.language, backbone.prompts, backbone.config.pad_id, self._pooling),
            inputs=(*self._image_tokens(), self._prompt(), token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def _prompt_graph(self, task: str) -> Graph:
        prompt = self._target_prompt if task == _TARGET else self._query_prompt
        no_text = ((self.backbone.config.pad_id,) * self.text_lengths[0],) if task == _TARGET else ()
        return Graph(
            task,
            Constants(padded(prompt, self._prompt_length), *no_text),
            inputs=self._image_tokens(),
            outputs=(self._prompt(), *(_ids(TensorName.TOKEN_IDS, len(ids)) for ids in no_text)),
        )

    @property
    def _prompt_length(self) -> int:
        return max(len(self._query_prompt), len(self._target_prompt))

    def _image_tokens(self) -> tuple[TensorSpec, ...]:
        return (vectors("image_tokens", self.backbone.num_image_tokens, self.dim),)

    def _prompt(self) -> TensorSpec:
        return _ids("prompt_ids", self._prompt_length)


def _ids(name: str, length: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.INT64, shape=(length,))
