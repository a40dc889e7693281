"""CIR-LVLM: a large vision-language model encodes queries and targets (arXiv 2412.11087)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_client.bundle import TensorSpec
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.names import EnsembleName, GraphName
from cirrus_export.backbones.backbone import require
from cirrus_export.backbones.lvlm import LvlmBackbone
from cirrus_export.graph import Graph, token_ids, vector, vectors
from cirrus_export.recipes.recipe import Options, Parts, Recipe
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.wiring import ensemble


@register("cir-lvlm")
class CirLvlm(Recipe):
    """One pass over visual tokens, a task prompt, chosen soft prompts and the text, pooled by a weighted mean.

    The paper leaves open the wording of its task prompts, the distance by which soft prompts are chosen and the weights
    of the mean. Here: prompts as token ids in the checkpoint's `config.json`, the cosine between the keys and the mean
    of an instance's visual tokens plus that of its words, and weights that grow with the place.
    """

    works_on = (LvlmBackbone,)
    needs_head = False

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        self._backbone = require(parts.backbone, LvlmBackbone, self.name)

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
        prompt = self.backbone.config.query_prompt
        return F.normalize(self.backbone.embed(self.backbone(pixels), prompt, token_ids), dim=-1)

    def target(self, pixels: Tensor) -> Tensor:
        """Return the target task's pass, without a text."""
        prompt = self.backbone.config.target_prompt
        return F.normalize(self.backbone.embed(self.backbone(pixels), prompt, None), dim=-1)

    def graphs(self) -> list[Graph]:
        """Return vision tower with connector, and the language model with each task's prompt."""
        return [self.backbone.vision_graph(), self._query_graph(), self._target_graph()]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries, which need an image, and targets.

        There is no fused gallery graph, which would be a third copy of the language model.
        """
        return {
            EnsembleName.ENCODE_QUERY: ensemble(self.backbone.vision_graph(), self._query_graph()),
            EnsembleName.ENCODE_TARGET: ensemble(self.backbone.vision_graph(), self._target_graph()),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the whole model."""
        return {"backbone": self.backbone}

    def pooling(self) -> str:
        """Return the pooling, with the prompt that a target is read with."""
        prompt = self.backbone.config.target_prompt
        return f"{self.backbone.pooling}, l2-normalised, target prompt {prompt}"

    def _query_graph(self) -> Graph:
        return Graph(
            GraphName.QUERY_HEAD,
            _Query(self.backbone),
            inputs=(*self._tokens(), token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def _target_graph(self) -> Graph:
        return Graph(
            GraphName.TARGET_HEAD,
            _Target(self.backbone),
            inputs=self._tokens(),
            outputs=(vector("target_embedding", self.dim),),
        )

    def _tokens(self) -> tuple[TensorSpec, ...]:
        return (vectors("image_tokens", self.backbone.num_image_tokens, self.dim),)


class _Query(nn.Module):
    def __init__(self, backbone: LvlmBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        prompt = self.backbone.config.query_prompt
        return F.normalize(self.backbone.embed(image_tokens, prompt, token_ids), dim=-1)


class _Target(nn.Module):
    def __init__(self, backbone: LvlmBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image_tokens: Tensor) -> Tensor:
        return F.normalize(self.backbone.embed(image_tokens, self.backbone.config.target_prompt, None), dim=-1)
