"""TransAgg query fusion over plain targets (arXiv 2306.07272, Code-kunkun/ZS-CIR)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_client.names import GraphName
from cirrus_export.backbones.backbone import TokenBackbone, require
from cirrus_export.backbones.family import Sizes
from cirrus_export.checkpoints import transagg_union as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, text_axis, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.transagg import PadMask, TransAgg
from cirrus_export.recipes.recipe import Options, Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.two_tower import TwoTowerRecipe


class TransAggOptions(Options):
    """pad_mask: how padding tokens enter the fusion; see `PadMask`."""

    pad_mask: PadMask = PadMask.BOOL


@register("transagg")
class TransAggRecipe(TwoTowerRecipe):
    """A query is fused over all tokens by TransAgg; a target is the backbone's image embedding.

    other_heads: prefixes of the keys that a derived recipe loads into a head of its own.
    """

    works_on = (TokenBackbone,)
    text_queries = True
    options_type = TransAggOptions
    head_keys: ClassVar[tuple[str, ...]] = checkpoint.QUERY_HEAD
    other_heads: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parts: Parts, options: TransAggOptions) -> None:
        self._tokens = require(parts.backbone, TokenBackbone, self.name)
        self._pad_mask = options.pad_mask
        super().__init__(parts, options)
        query_head = TransAgg(
            self.dim,
            num_layers=checkpoint.fusion_layers(parts.head),
            text_token=self.backbone.text_token,
            pad_mask=options.pad_mask,
        )
        if parts.head is not None:
            checkpoint.load_query_head(parts.head, query_head, beside=self.other_heads)
        self.query_head: nn.Module = freeze(query_head)

    @property
    def backbone(self) -> TokenBackbone:
        """The frozen CLIP or BLIP."""
        return self._tokens

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """The backbone's lengths; the full context alone with `PadMask.ADDITIVE`, whose fusion reads padding."""
        lengths = super().text_lengths
        return lengths if self._pad_mask is PadMask.BOOL else lengths[-1:]

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `targetpad_transform(1.25, ...)` to RGB, as the loaders of CIRR and CIRCO do.

        FashionIQ's loader leaves the conversion to the transform, which does it after the crop. It makes no difference
        to a photograph, which is RGB.
        """
        return narrowed(own, pad=Pad.TARGET, convert_rgb="before_resize")

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the CLIP or BLIP that released training saves beside the head, or None."""
        return checkpoint.backbone(head)

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Raise CheckpointError if the head is of another width than the backbone's embeddings."""
        if head is not None:
            checkpoint.check_width(head, sizes.dim)

    def query_graph(self) -> Graph:
        """Return `combine_features` of the released code."""
        dim, lengths = self.dim, self.text_lengths
        return Graph(
            GraphName.QUERY_HEAD,
            self.query_head,
            inputs=(
                vector("image_embedding", dim),
                vectors("image_tokens", self.backbone.num_image_tokens, dim),
                vector("text_embedding", dim),
                vectors("text_tokens", text_axis(lengths), dim),
                token_ids(lengths),
            ),
            outputs=(vector("query_embedding", dim),),
            text_lengths=lengths,
        )
