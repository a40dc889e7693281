"""Zero-shot CLIP: image only, text only, or the weighted sum of the two (arXiv 2103.00020)."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.names import EnsembleName, GraphName
from cirrus_export.graph import Graph, token_ids, vector
from cirrus_export.heads.zero_shot import Normalise, WeightedSum
from cirrus_export.recipes.recipe import Options, Parts, narrowed
from cirrus_export.recipes.registry import register
from cirrus_export.recipes.two_tower import TwoTowerRecipe
from cirrus_export.recipes.wiring import ensemble


class ClipOptions(Options):
    """text_weight: share of the text in a query that has both; 0 is the image alone, 1 is the text alone."""

    text_weight: float = Field(default=0.5, ge=0, le=1)


@register("clip")
class Clip(TwoTowerRecipe):
    """No trained head: the baseline every CIR paper compares with."""

    needs_head = False
    options_type = ClipOptions

    def __init__(self, parts: Parts, options: ClipOptions) -> None:
        super().__init__(parts, options)
        self.query_head = WeightedSum(options.text_weight, self.backbone.null_token_ids)

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply OpenAI's `_transform` and open_clip's `image_transform`: RGB after the crop."""
        return narrowed(own, convert_rgb="after_crop")

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return the normalised text embedding."""
        return F.normalize(self.backbone.embed_text(token_ids), dim=-1)

    def graphs(self) -> list[Graph]:
        """Return a head for texts alone as well."""
        return [*super().graphs(), self._text_query_graph()]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries of an image, a text, or both."""
        text_query = ensemble(self.backbone.text_graph(self.text_lengths), self._text_query_graph())
        return super().ensembles() | {EnsembleName.ENCODE_TEXT_QUERY: text_query}

    def query_graph(self) -> Graph:
        """Return the weighted sum of the normalised embeddings."""
        dim = self.dim
        return Graph(
            GraphName.QUERY_HEAD,
            self.query_head,
            inputs=(vector("image_embedding", dim), vector("text_embedding", dim), token_ids(self.text_lengths)),
            outputs=(vector("query_embedding", dim),),
            text_lengths=self.text_lengths,
        )

    def _text_query_graph(self) -> Graph:
        return Graph(
            GraphName.TEXT_QUERY_HEAD,
            Normalise(),
            inputs=(vector("text_embedding", self.dim),),
            outputs=(vector("query_embedding", self.dim),),
        )
