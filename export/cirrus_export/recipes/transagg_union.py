"""TransAgg query fusion with UNION targets (arXiv 2306.07272, 2511.22253)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cirrus_client.bundle import EnsembleName, Similarity
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.preprocess import Pad, PreprocessSpec
from cirrus_export.checkpoints import transagg_union as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.transagg import PadMask, TransAgg
from cirrus_export.heads.union import Union
from cirrus_export.recipes.recipe import (
    Options,
    Parts,
    Recipe,
    head_step,
    query_ensemble,
    register,
    target_ensemble,
)


class TransAggUnionOptions(Options):
    """pad_mask: how padding tokens enter the fusion; see `PadMask`."""

    pad_mask: PadMask = PadMask.BOOL


@register("transagg-union")
class TransAggUnion(Recipe):
    """A query is fused over all tokens by TransAgg; a target is the UNION of the image and the null text."""

    similarity = Similarity.COSINE
    needs_head = True
    options_type = TransAggUnionOptions
    options: TransAggUnionOptions

    def __init__(self, parts: Parts, options: TransAggUnionOptions) -> None:
        super().__init__(parts, options)
        dim = self.backbone.dim
        self.query_head = TransAgg(dim, pad_mask=options.pad_mask)
        self.union = Union(dim, num_heads=checkpoint.t5_heads(dim))
        if parts.head is not None:
            checkpoint.load(parts.head, self.query_head, self.union)
        freeze(self.query_head)
        freeze(self.union)
        self.target_head = self._null_text_union()

    @staticmethod
    def preprocess(image_size_px: int) -> PreprocessSpec:
        """TargetPad(1.25), then CLIP's resize and crop: `targetpad_transform` of the released code."""
        return PreprocessSpec(size_px=image_size_px, pad=Pad.TARGET)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Released training saves the CLIP beside the head, under `model.` or `pretrained_model.`."""
        return checkpoint.backbone(head)

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """`combine_features` of the released code."""
        image_embedding, image_tokens = self.backbone.encode_image(pixels)
        text_embedding, text_tokens = self.backbone.encode_text(token_ids)
        fused: Tensor = self.query_head(image_embedding, image_tokens, text_embedding, text_tokens, token_ids)
        return fused

    def target(self, pixels: Tensor) -> Tensor:
        """`union_features(images, [""] * B)` of the released code, the text encoder run on the empty text."""
        image_embedding, _ = self.backbone.encode_image(pixels)
        null_text, _ = self.backbone.encode_text(self.backbone.null_token_ids.expand(len(pixels), -1))
        target: Tensor = self.union(image_embedding, null_text)
        return target

    def graphs(self) -> list[Graph]:
        """Encoders, query head, target head with the null text folded in, and the fused gallery graph."""
        return [
            self.vision_graph(),
            self.text_graph(),
            self._query_graph(),
            Graph(
                "target_head",
                self.target_head,
                inputs=(vector("image_embedding", self.backbone.dim),),
                outputs=(vector("target_embedding", self.backbone.dim),),
            ),
            self.gallery_graph(self.target_head),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Queries need an image; an absent text is the null text."""
        return {
            EnsembleName.ENCODE_QUERY: query_ensemble(head_step(self._query_graph())),
            EnsembleName.ENCODE_TARGET: target_ensemble(),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """The vision tower, and the union with its null text, which stands for the text tower."""
        return {"backbone": self.backbone.clip.visual, "target_head": self.target_head}

    def _query_graph(self) -> Graph:
        dim, length = self.backbone.dim, self.backbone.context_length
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

    def _null_text_union(self) -> NullTextUnion:
        with torch.no_grad():
            null_text, _ = self.backbone.encode_text(self.backbone.null_token_ids)
        return NullTextUnion(self.union, null_text)


class NullTextUnion(nn.Module):
    """UNION with the embedding of the empty text as a constant: no text encoder runs for a gallery."""

    null_text: Tensor

    def __init__(self, union: Union, null_text: Tensor) -> None:
        """null_text: the unnormalised text embedding of "", float32 [1, D]."""
        super().__init__()
        self.union = union
        self.register_buffer("null_text", null_text)

    def forward(self, image_embedding: Tensor) -> Tensor:
        """Return gallery embeddings [B, D] of unnormalised image embeddings [B, D]."""
        target: Tensor = self.union(image_embedding, self.null_text.expand(image_embedding.shape[0], -1))
        return target
