"""Zero-shot CLIP: image only, text only, or the weighted sum of the two (arXiv 2103.00020)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from cirrus_client.bundle import EnsembleName, Similarity
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.preprocess import PreprocessSpec
from cirrus_export.graph import Graph, token_ids, vector
from cirrus_export.heads.zero_shot import Normalise, WeightedSum
from cirrus_export.recipes.recipe import (
    Options,
    Parts,
    Recipe,
    head_step,
    query_ensemble,
    register,
    target_ensemble,
    text_query_ensemble,
)


class ClipOptions(Options):
    """text_weight: share of the text in a query that has both; 0 is the image alone, 1 the text alone."""

    text_weight: float = Field(default=0.5, ge=0, le=1)


@register("clip")
class Clip(Recipe):
    """No trained head: the baseline every CIR paper compares with."""

    similarity = Similarity.COSINE
    needs_head = False
    options_type = ClipOptions
    options: ClipOptions

    def __init__(self, parts: Parts, options: ClipOptions) -> None:
        super().__init__(parts, options)
        self.query_head = WeightedSum(options.text_weight)

    @staticmethod
    def preprocess(image_size_px: int) -> PreprocessSpec:
        """CLIP's own: resize the shorter side, centre crop, RGB last."""
        return PreprocessSpec(size_px=image_size_px, convert_rgb="after_crop")

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """The weighted sum of the normalised embeddings."""
        image_embedding, _ = self.backbone.encode_image(pixels)
        text_embedding, _ = self.backbone.encode_text(token_ids)
        query: Tensor = self.query_head(image_embedding, text_embedding, token_ids)
        return query

    def text_query(self, token_ids: Tensor) -> Tensor:
        """The normalised text embedding."""
        embedding: Tensor = self.backbone.clip.encode_text(token_ids, normalize=True)
        return embedding

    def target(self, pixels: Tensor) -> Tensor:
        """The normalised image embedding."""
        embedding: Tensor = self.backbone.clip.encode_image(pixels, normalize=True)
        return embedding

    def graphs(self) -> list[Graph]:
        """Encoders, the weighted sum, and normalisation for texts and targets."""
        return [
            self.vision_graph(),
            self.text_graph(),
            self._query_graph(),
            self._text_query_graph(),
            Graph(
                "target_head",
                Normalise(),
                inputs=(vector("image_embedding", self.backbone.dim),),
                outputs=(vector("target_embedding", self.backbone.dim),),
            ),
            self.gallery_graph(Normalise()),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Any combination of image and text."""
        return {
            EnsembleName.ENCODE_QUERY: query_ensemble(head_step(self._query_graph())),
            EnsembleName.ENCODE_TEXT_QUERY: text_query_ensemble(head_step(self._text_query_graph())),
            EnsembleName.ENCODE_TARGET: target_ensemble(),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """The vision tower; there is no target head."""
        return {"backbone": self.backbone.clip.visual}

    def _query_graph(self) -> Graph:
        dim, length = self.backbone.dim, self.backbone.context_length
        return Graph(
            "query_head",
            self.query_head,
            inputs=(vector("image_embedding", dim), vector("text_embedding", dim), token_ids(length)),
            outputs=(vector("query_embedding", dim),),
        )

    def _text_query_graph(self) -> Graph:
        dim = self.backbone.dim
        return Graph(
            "text_query_head",
            Normalise(),
            inputs=(vector("text_embedding", dim),),
            outputs=(vector("query_embedding", dim),),
        )
