"""CLIP4Cir: a trained Combiner over both embeddings of a CLIP, often a ResNet's (ABaldrati/CLIP4Cir, CVPRW 2022)."""

from __future__ import annotations

from torch import nn

from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_export.backbones.family import Sizes
from cirrus_export.checkpoints import combiner as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph
from cirrus_export.heads.frozen import freeze
from cirrus_export.recipes.recipe import Options, Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.two_tower import TwoTowerRecipe


@register("clip4cir")
class Clip4Cir(TwoTowerRecipe):
    """A query is the Combiner's mix of the unnormalised embeddings; a target is the CLIP's image embedding.

    A CLIP that was fine-tuned before is a file of its own, `{"epoch": ..., "CLIP": state_dict}`: --pretrained. Queries
    of the published evaluation always have a text; without one, the Combiner gets the embedding of the empty text.
    """

    text_queries = True
    head_keys = ("text_projection_layer.", "image_projection_layer.", "combiner_layer.", "dynamic_scalar.")

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        self.query_head: nn.Module = freeze(checkpoint.load_combiner(parts.head, self.dim))

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `targetpad_transform(1.25, ...)` of `src/data_utils.py`: RGB after the crop."""
        return narrowed(own, pad=Pad.TARGET, convert_rgb="after_crop")

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Raise CheckpointError if the head is of another width than the backbone's embeddings."""
        if head is not None:
            checkpoint.check_width(head, sizes.dim)

    def query_graph(self) -> Graph:
        """Return `combine_features` of the released code."""
        return self.head_graph(self.query_head)
