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
    """A query is one pass, learned queries over image and text: what the text's first token has read.

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
    """INTENT (AAAI 2026): a query is HINT's one pass.

    `Blip2QformerCir.extract_retrieval_compose` of ZivChen-Ty/INTENT.
    """

    head_keys = (*QFormerRecipe.head_keys, "text_proj_cau.")


@register("habit")
class Habit(Hint):
    """HABIT (AAAI 2026): a query is HINT's one pass (`HABIT.extract_retrieval_compose` of Lee-zixu/HABIT).

    Its file has SPRC's names and no others, so that only whoever brings it knows that it is read in one pass. How its
    loaders make pixels was not seen; HINT's are taken.
    """

    head_keys = QFormerRecipe.head_keys


@register("conesep")
class ConeSep(Hint):
    """ConeSep (CVPR 2026): a query is HINT's one pass (`ConeSep.extract_retrieval_compose` of Lee-zixu/ConeSep).

    How its loaders make pixels was not seen; HINT's are taken.
    """

    head_keys = (*QFormerRecipe.head_keys, "negative_tokens")


class _OnePass(nn.Module):
    def __init__(self, qformer: QFormer) -> None:
        super().__init__()
        self.qformer = qformer

    def forward(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        return self.qformer.fused(image_tokens, token_ids)
