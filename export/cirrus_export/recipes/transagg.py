"""TransAgg query fusion over plain targets (arXiv 2306.07272, Code-kunkun/ZS-CIR)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_client.bundle import EnsembleName
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.preprocess import Pad, PreprocessSpec
from cirrus_export.checkpoints import transagg_union as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.transagg import PadMask, TransAgg
from cirrus_export.heads.zero_shot import Normalise
from cirrus_export.recipes.recipe import Options, Parts, register
from cirrus_export.recipes.two_tower import TwoTowerRecipe
from cirrus_export.recipes.wiring import ensemble


class TransAggOptions(Options):
    """pad_mask: how padding tokens enter the fusion; see `PadMask`."""

    pad_mask: PadMask = PadMask.BOOL


@register("transagg")
class TransAggRecipe(TwoTowerRecipe):
    """A query is fused over all tokens by TransAgg; a target is the backbone's image embedding."""

    options_type = TransAggOptions

    def __init__(self, parts: Parts, options: TransAggOptions) -> None:
        super().__init__(parts, options)
        self.query_head = TransAgg(
            self.dim,
            num_layers=checkpoint.fusion_layers(parts.head),
            text_token=self.backbone.text_token,
            pad_mask=options.pad_mask,
        )
        if parts.head is not None:
            checkpoint.load_query_head(parts.head, self.query_head)
        freeze(self.query_head)

    @property
    def target_head(self) -> nn.Module:
        """The module from the unnormalised image embedding to the gallery embedding."""
        return Normalise()

    @staticmethod
    def preprocess(image_size_px: int) -> PreprocessSpec:
        """TargetPad(1.25), then CLIP's resize and crop: `targetpad_transform` of the released code."""
        return PreprocessSpec(size_px=image_size_px, pad=Pad.TARGET)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Released training saves the CLIP or BLIP beside the head, under `model.` or `pretrained_model.`."""
        return checkpoint.backbone(head)

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """`combine_features` of the released code."""
        image_embedding, image_tokens = self.backbone.encode_image(pixels)
        text_embedding, text_tokens = self.backbone.encode_text(token_ids)
        fused: Tensor = self.query_head(image_embedding, image_tokens, text_embedding, text_tokens, token_ids)
        return fused

    def target(self, pixels: Tensor) -> Tensor:
        """The normalised image embedding."""
        return F.normalize(self.backbone.encode_image(pixels)[0], dim=-1)

    def graphs(self) -> list[Graph]:
        """Encoders, query head, target head, and the fused gallery graph."""
        return [
            self.vision_graph(),
            self.text_graph(),
            self._query_graph(),
            self.target_graph(self.target_head),
            self.gallery_graph(self.target_head),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Queries need an image; an absent text is the null text."""
        return {
            EnsembleName.ENCODE_QUERY: ensemble(self.vision_graph(), self.text_graph(), self._query_graph()),
            EnsembleName.ENCODE_TARGET: ensemble(self.gallery_graph(self.target_head)),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """The vision tower; the target head has no weights."""
        return {"backbone": self.backbone.vision}

    def _query_graph(self) -> Graph:
        dim, length = self.dim, self.backbone.context_length
        return Graph(
            "query_head",
            self.query_head,
            inputs=(
                vector("image_embedding", dim),
                vectors("image_tokens", self.backbone.num_image_tokens, dim),
                vector("text_embedding", dim),
                vectors("text_tokens", length, dim),
                token_ids(length),
            ),
            outputs=(vector("query_embedding", dim),),
        )
