"""BGE-VL on CLIP, base and large (MegaPairs, arXiv 2412.14475; VectorSpaceLab/MegaPairs `modeling_MMRet_CLIP.py`)."""

from __future__ import annotations

from cirrus_client.image.preprocess import Crop, PreprocessSpec
from cirrus_client.tokenizer import TextCleaning
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.graph import Graph
from cirrus_export.heads.zero_shot import PlainSum
from cirrus_export.recipes.recipe import Options, Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.two_tower import TwoTowerRecipe


@register("bge-vl")
class BgeVl(TwoTowerRecipe):
    """A query is the sum of the image's and the text's embedding as the towers give them; a target is the image's.

    The released code normalises the sum and not its parts, so the longer embedding counts more. It has no head: the
    CLIP, a folder that transformers saved, is all that was trained.
    """

    works_on = (OpenClipBackbone,)
    needs_head = False
    text_queries = True

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        self.query_head = PlainSum(self.backbone.null_token_ids)

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `Image.convert("RGB")` and Hugging Face's `CLIPProcessor`, whose crop is rounded down."""
        return narrowed(own, convert_rgb="before_resize", crop=Crop.FLOOR)

    @property
    def prompt(self) -> Prompt:
        """Clean a text as Hugging Face's CLIP tokenizer does, which repairs nothing and knows no HTML."""
        return Prompt(cleaning=TextCleaning.NFC)

    def query_graph(self) -> Graph:
        """Return `encode_multimodal` of the released class; `encode_image` where there is no text."""
        return self.head_graph(self.query_head, reads_tokens=True)
