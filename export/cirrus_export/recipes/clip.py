"""Zero-shot CLIP: image only, text only, or the weighted sum of the two (arXiv 2103.00020)."""

from __future__ import annotations

from pydantic import Field

from cirrus_client.image.preprocess import Crop, PreprocessSpec
from cirrus_client.tokenizer import TextCleaning
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.graph import Graph
from cirrus_export.heads.zero_shot import WeightedSum
from cirrus_export.recipes.recipe import Options, Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.two_tower import TwoTowerRecipe


class ClipOptions(Options):
    """text_weight: share of the text in a query that has both; 0 is the image alone, 1 is the text alone."""

    text_weight: float = Field(default=0.5, ge=0, le=1)


@register("clip")
class Clip(TwoTowerRecipe):
    """No trained head: the baseline every CIR paper compares with."""

    needs_head = False
    text_queries = True
    options_type = ClipOptions

    def __init__(self, parts: Parts, options: ClipOptions) -> None:
        super().__init__(parts, options)
        self.query_head = WeightedSum(options.text_weight, self.backbone.null_token_ids)

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply OpenAI's `_transform` and open_clip's `image_transform`, which convert to RGB after the crop.

        Weights with transformers' settings beside them are prepared by its processor, which converts first.
        """
        by_transformers = own.crop is Crop.FLOOR
        return narrowed(own, convert_rgb="before_resize" if by_transformers else "after_crop", crop=own.crop)

    @property
    def prompt(self) -> Prompt:
        """Clean a text as Hugging Face's CLIP tokenizer does, if its processor prepares the images."""
        backbone = self.backbone
        by_transformers = isinstance(backbone, OpenClipBackbone) and backbone.preprocess.crop is Crop.FLOOR
        return Prompt(cleaning=TextCleaning.NFC if by_transformers else None)

    def query_graph(self) -> Graph:
        """Return the weighted sum of the normalised embeddings."""
        return self.head_graph(self.query_head, reads_tokens=True)
