"""TransAgg query fusion with UNION targets (arXiv 2306.07272, 2511.22253; baohl00/UNION_for_IGROT)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from cirrus_client.bundle import CaptionJoin
from cirrus_client.image.preprocess import Pad, PreprocessSpec, Transparency
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.checkpoints import transagg_union as checkpoint
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.union import NullTextUnion, QueryWithUnion, Union
from cirrus_export.recipes.recipe import Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.transagg import TransAggOptions, TransAggRecipe


class UnionOptions(TransAggOptions):
    """union_weight: how much of the UNION of reference and text is added to a query.

    `data_submission/fiq_test_submission.py` adds 0.1, the codes for CIRR, CIRCO and sketches add 0.
    """

    union_weight: float = Field(default=0, ge=0)


@register("transagg-union")
class TransAggUnion(TransAggRecipe):
    """A query is fused over all tokens by TransAgg; a target is the UNION of the image and the null text."""

    options_type = UnionOptions
    text_queries = False
    caption_join = CaptionJoin.JOINED
    circo_without_reference = True
    head_keys = (*TransAggRecipe.head_keys, *checkpoint.UNION)
    other_heads = checkpoint.UNION

    def __init__(self, parts: Parts, options: UnionOptions) -> None:
        super().__init__(parts, options)
        self.union = Union(self.dim, num_heads=checkpoint.t5_heads(parts.head, self.dim))
        if parts.head is not None:
            checkpoint.load_union(parts.head, self.union)
        freeze(self.union)
        if options.union_weight:
            self.query_head = QueryWithUnion(self.query_head, self.union, options.union_weight)
        with torch.no_grad():
            null_text = self.backbone.embed_text(self.backbone.null_token_ids)
        self._null_text_union = NullTextUnion(self.union, null_text)

    @property
    def target_head(self) -> NullTextUnion:
        """UNION with the null text folded in."""
        return self._null_text_union

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the vision tower, UNION, and the text tower that embeds the null text."""
        return super().target_modules() | {"null_text": self.backbone.text}

    def target(self, pixels: Tensor) -> Tensor:
        """Return `union_features(images, [""] * B)` of the released code, which encodes the empty text B times."""
        image_embedding = self.backbone.embed_image(pixels)
        null_text = self.backbone.embed_text(self.backbone.null_token_ids.expand(len(pixels), -1))
        target: Tensor = self.union(image_embedding, null_text)
        return target


class UnionSketchOptions(UnionOptions):
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

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `targetpad_transform(1.25, ...)` as the loaders of sketches do: RGB after the crop.

        A transparent image is laid on white. The released loaders drop transparency, which turns a transparent sketch
        all black.
        """
        return narrowed(own, pad=Pad.TARGET, convert_rgb="after_crop", transparency=Transparency.WHITE)

    @property
    def prompt(self) -> Prompt:
        """Use the option's text where a query has none."""
        return Prompt(null_text=self._sketch_text)
