"""HINT (arXiv 2603.26341), and other methods whose query is one pass of BLIP-2's Q-Former over image and text."""

from __future__ import annotations

from torch import Tensor, nn

from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_export.heads.qformer import QFormer
from cirrus_export.recipes.qformer import QFormerRecipe
from cirrus_export.recipes.recipe import narrowed
from cirrus_export.recipes.registry import register


@register("hint")
class Hint(QFormerRecipe):
    """The text's first token, after the pass in which the learned queries read the reference, is the query.

    Its contexts and their relevance (`sim_enc`) are part of the training loss alone
    (`HINT.extract_retrieval_compose` of zh-mingyu/HINT).
    """

    head_keys = (*QFormerRecipe.head_keys, "sim_enc.")

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply `targetpad_transform(1.25, 224)` to RGB, as the loaders of `datasets.py` do."""
        return narrowed(own, pad=Pad.TARGET, convert_rgb="before_resize")

    @property
    def query_head(self) -> nn.Module:
        """See `QFormerRecipe.query_head`."""
        return _OnePass(self.qformer)

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return `extract_retrieval_compose` of the released class."""
        return self.qformer.fused(self.backbone(pixels), token_ids)


@register("intent")
class Intent(Hint):
    """INTENT (AAAI 2026): `Blip2QformerCir.extract_retrieval_compose` of ZivChen-Ty/INTENT."""

    head_keys = (*QFormerRecipe.head_keys, "text_proj_cau.")


@register("conesep")
class ConeSep(Hint):
    """ConeSep (CVPR 2026): `ConeSep.extract_retrieval_compose` of Lee-zixu/ConeSep; its loaders taken for HINT's."""

    head_keys = (*QFormerRecipe.head_keys, "negative_tokens")


class _OnePass(nn.Module):
    def __init__(self, qformer: QFormer) -> None:
        super().__init__()
        self.qformer = qformer

    def forward(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        return self.qformer.fused(image_tokens, token_ids)
