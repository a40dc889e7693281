"""TransAgg query fusion with UNION targets (arXiv 2306.07272, 2511.22253; baohl00/UNION_for_IGROT)."""

from __future__ import annotations

import torch
from torch import Tensor

from cirrus_export.backbones.backbone import Prompt
from cirrus_export.checkpoints import transagg_union as checkpoint
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.union import NullTextUnion, Union
from cirrus_export.recipes.recipe import Parts
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.transagg import TransAggOptions, TransAggRecipe


@register("transagg-union")
class TransAggUnion(TransAggRecipe):
    """A query is fused over all tokens by TransAgg; a target is the UNION of the image and the null text."""

    head_keys = (*TransAggRecipe.head_keys, *checkpoint.UNION)
    other_heads = checkpoint.UNION

    def __init__(self, parts: Parts, options: TransAggOptions) -> None:
        super().__init__(parts, options)
        self.union = Union(self.dim, num_heads=checkpoint.t5_heads(parts.head, self.dim))
        if parts.head is not None:
            checkpoint.load_union(parts.head, self.union)
        freeze(self.union)
        with torch.no_grad():
            null_text = self.backbone.embed_text(self.backbone.null_token_ids)
        self._null_text_union = NullTextUnion(self.union, null_text)

    @property
    def target_head(self) -> NullTextUnion:
        """UNION with the null text folded in."""
        return self._null_text_union

    def target(self, pixels: Tensor) -> Tensor:
        """Return `union_features(images, [""] * B)` of the released code, which encodes the empty text B times."""
        image_embedding = self.backbone.embed_image(pixels)
        null_text = self.backbone.embed_text(self.backbone.null_token_ids.expand(len(pixels), -1))
        target: Tensor = self.union(image_embedding, null_text)
        return target


class UnionSketchOptions(TransAggOptions):
    """sketch_text: what a sketch without a text is searched with. Sketchy's evaluation uses a prompt, the others ""."""

    sketch_text: str = ""


@register("union-sketch")
class UnionSketch(TransAggUnion):
    """Sketch-based image retrieval: a query is a sketch, with the null text, or a fixed prompt, in place of an edit.

    `data_submission/{tuberlin,quickdraw,sketchy}_test_submission.py`: Sketchy's text is "a real image of sketch", in
    training as in evaluation; TU-Berlin's and QuickDraw's are empty. A text given with the sketch still counts.
    """

    options_type = UnionSketchOptions

    def __init__(self, parts: Parts, options: UnionSketchOptions) -> None:
        super().__init__(parts, options)
        self._sketch_text = options.sketch_text

    @property
    def prompt(self) -> Prompt:
        """Use the option's text where a query has none."""
        return Prompt(null_text=self._sketch_text)
