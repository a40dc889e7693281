"""MagicLens: self-supervised retrieval with open-ended instructions (arXiv 2403.19651; google-deepmind/magiclens)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cirrus_client.bundle import CaptionJoin
from cirrus_client.image.preprocess import Interpolation, Pad, PreprocessSpec
from cirrus_export.backbones.family import Sizes
from cirrus_export.checkpoints import magiclens as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.magiclens import NullTextMagicLens
from cirrus_export.recipes.recipe import Options, Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.two_tower import TwoTowerRecipe


@register("magiclens")
class MagicLensRecipe(TwoTowerRecipe):
    """A query and a target go through the same head; a target's text is the empty one."""

    caption_join = CaptionJoin.JOINED
    head_keys = checkpoint.HEAD

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        self.query_head = freeze(checkpoint.load(parts.head, self.dim))
        with torch.no_grad():
            null_text = self.backbone.embed_text(self.backbone.null_token_ids)
        self._target_head = NullTextMagicLens(self.query_head, null_text)

    @property
    def target_head(self) -> NullTextMagicLens:
        """The head with the null text folded in."""
        return self._target_head

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `_preprocess_images` of the released class to RGB: the largest centre square, bilinear, antialiased.

        `data_utils.py` of the released evaluation hands it images that are stretched to a square already, and divided
        by their own brightest level.
        """
        return narrowed(own, pad=Pad.SQUARE, interpolation=Interpolation.BILINEAR, convert_rgb="before_resize")

    @staticmethod
    def read_head(path: Path) -> StateDict:
        """Read the released file as `checkpoints.magiclens.read` does."""
        return checkpoint.read(path)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the CLIP that is saved beside the head."""
        return checkpoint.backbone(head)

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Raise CheckpointError if the head is of another width than the backbone's embeddings."""
        if head is not None:
            checkpoint.check_width(head, sizes.dim)

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the vision tower, the head, and the text tower that embeds the null text."""
        return super().target_modules() | {"null_text": self.backbone.text}

    def target(self, pixels: Tensor) -> Tensor:
        """Return the released class's embedding of an image and the empty text, encoded for each image."""
        null_text = self.backbone.embed_text(self.backbone.null_token_ids.expand(len(pixels), -1))
        target: Tensor = self.query_head(self.backbone.embed_image(pixels), null_text)
        return target

    def query_graph(self) -> Graph:
        """Return the transformer over both embeddings and its pooling."""
        return self.head_graph(self.query_head)
