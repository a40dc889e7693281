"""What the recipes on BLIP-2's Q-Former have in common: all but how a query reads its image and text."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from cirrus_client.bundle import Similarity, TensorSpec
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_client.names import EnsembleName, GraphName
from cirrus_client.tokenizer import TextCleaning
from cirrus_export.backbones.backbone import Prompt, require
from cirrus_export.backbones.blip2 import Blip2Backbone
from cirrus_export.backbones.family import Sizes
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.checkpoints import sprc as checkpoint
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, pixels, token_ids, vector, vectors
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.qformer import QFormer, QFormerSize
from cirrus_export.recipes.recipe import Options, Parts, Recipe, narrowed
from cirrus_export.recipes.wiring import ensemble


class QFormerRecipe(Recipe):
    """A target is 32 vectors, those of the learned queries; a query is one, and its best match counts.

    Of a plain CLIP the vision tower is taken, its last layer norm as `ln_vision`. Checkpoints are in LAVIS's key names,
    of the whole model.
    """

    works_on = (Blip2Backbone, OpenClipBackbone)
    similarity = Similarity.MAX_COSINE
    head_keys: ClassVar[tuple[str, ...]] = ("Qformer.bert.", "query_tokens", "vision_proj.", "text_proj.")

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        backbone, head = parts.backbone, parts.head
        if isinstance(backbone, OpenClipBackbone):
            backbone = Blip2Backbone(backbone.clip.visual, backbone.preprocess, backbone.activation)
        self._backbone = require(backbone, Blip2Backbone, self.name)
        width = self.backbone.width
        self.qformer = QFormer(QFormerSize(width) if head is None else checkpoint.size(head, width))
        if head is not None:
            checkpoint.load(head, self.qformer)
            checkpoint.load_last_norm(head, self.backbone.last_norm)
        freeze(self.qformer)

    @property
    @abstractmethod
    def query_head(self) -> nn.Module:
        """What makes a query embedding [B, D] of image tokens [B, N, W] and token ids [B, T]."""

    @property
    def backbone(self) -> Blip2Backbone:
        """The frozen image encoder; the text goes to the Q-Former."""
        return self._backbone

    @property
    def dim(self) -> int:
        """Width D of every vector."""
        return self.qformer.size.dim

    @property
    def vectors(self) -> int:
        """Number of learned queries: each gives one vector."""
        return self.qformer.size.num_queries

    @staticmethod
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Apply SPRC's `targetpad_transform(1.25, 224)` of `src/data_utils.py`: RGB after the crop."""
        return narrowed(own, pad=Pad.TARGET, convert_rgb="after_crop")

    @property
    def prompt(self) -> Prompt:
        """Use LAVIS's `blip_caption` evaluation processor."""
        return Prompt(cleaning=TextCleaning.BLIP_CAPTION)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the BLIP-2 that is saved beside the head."""
        return checkpoint.backbone(head)

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Compare the width of the image tokens."""
        if head is not None:
            checkpoint.check_width(head, sizes.image_width)

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return the Q-Former's text path, which BLIP-2 was trained to match with an image's vectors."""
        return self.qformer.text(token_ids)

    def target(self, pixels: Tensor) -> Tensor:
        """Return `extract_target_features` of the released classes."""
        return self.qformer.target(self.backbone(pixels))

    def graphs(self) -> list[Graph]:
        """Return image encoder, query, text query, the target's vectors, and encoder and target in one."""
        target = (vectors("target_embeddings", self.vectors, self.dim),)
        return [
            self.backbone.vision_graph(),
            self._query_graph(),
            self._text_query_graph(),
            Graph(GraphName.TARGET_HEAD, _Target(self.qformer), inputs=(self._image_tokens(),), outputs=target),
            self._gallery_graph(),
        ]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries of image and text or of a text alone, and targets.

        Beside an image an absent text is the empty one.
        """
        return {
            EnsembleName.ENCODE_QUERY: ensemble(self.backbone.vision_graph(), self._query_graph()),
            EnsembleName.ENCODE_TEXT_QUERY: ensemble(self._text_query_graph()),
            EnsembleName.ENCODE_TARGET: ensemble(self._gallery_graph()),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the image encoder and the Q-Former."""
        return {"backbone": self.backbone.vision, "target_head": self.qformer}

    def pooling(self) -> str:
        """Return how the target side gets its vectors out of an image."""
        return "learned queries, projected, l2-normalised"

    def _image_tokens(self) -> TensorSpec:
        return vectors("image_tokens", self.backbone.num_image_tokens, self.backbone.width)

    def _query_outputs(self) -> tuple[TensorSpec, ...]:
        return (vector("query_embedding", self.dim),)

    def _query_graph(self) -> Graph:
        return Graph(
            GraphName.QUERY_HEAD,
            self.query_head,
            inputs=(self._image_tokens(), token_ids(self.text_lengths)),
            outputs=self._query_outputs(),
            text_lengths=self.text_lengths,
        )

    def _text_query_graph(self) -> Graph:
        return Graph(
            "text_query_encoder",
            _TextQuery(self.qformer),
            inputs=(token_ids(self.text_lengths),),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=self.text_lengths,
        )

    def _gallery_graph(self) -> Graph:
        return Graph(
            GraphName.GALLERY,
            nn.Sequential(self.backbone, _Target(self.qformer)),
            inputs=(pixels(self.backbone.image_size_px),),
            outputs=(vectors("target_embeddings", self.vectors, self.dim),),
        )


class _TextQuery(nn.Module):
    def __init__(self, qformer: QFormer) -> None:
        super().__init__()
        self.qformer = qformer

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.qformer.text(token_ids)


class _Target(nn.Module):
    def __init__(self, qformer: QFormer) -> None:
        super().__init__()
        self.qformer = qformer

    def forward(self, image_tokens: Tensor) -> Tensor:
        return self.qformer.target(image_tokens)
