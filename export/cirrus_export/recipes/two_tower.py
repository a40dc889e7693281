"""What recipes on two towers share: the encoders, and a gallery graph around one head."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.names import EnsembleName, GraphName, TensorName
from cirrus_export.backbones.backbone import PooledBackbone, require
from cirrus_export.graph import Graph, pixels, token_ids, vector
from cirrus_export.heads.zero_shot import Normalise
from cirrus_export.recipes.recipe import Options, Parts, Recipe
from cirrus_export.recipes.wiring import ensemble


class TwoTowerRecipe(Recipe):
    """A recipe on a backbone with an image and a text encoder.

    A method says what its query head is, `query_graph`. Targets are the normalised image embeddings unless the method
    has a `target_head` of its own.

    text_queries: whether a text alone is a query as well, because the gallery is in the space of the backbone's texts.
    """

    works_on = (PooledBackbone,)
    text_queries: ClassVar[bool] = False

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        self._backbone = require(parts.backbone, PooledBackbone, self.name)

    @property
    def backbone(self) -> PooledBackbone:
        """The frozen encoders."""
        return self._backbone

    @property
    def dim(self) -> int:
        """Width D of the shared embedding."""
        return self.backbone.dim

    @property
    def target_head(self) -> nn.Module:
        """The module from the unnormalised image embedding [B, D] to the gallery embedding [B, D]."""
        return Normalise()

    @abstractmethod
    def query_graph(self) -> Graph:
        """Return the query head: some of the encoders' outputs, and token ids if it needs them, to the query."""

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return both encoders' outputs through the query head."""
        tensors: dict[str, Tensor] = {TensorName.PIXELS: pixels, TensorName.TOKEN_IDS: token_ids}
        for graph in self.query_encoders():
            results = graph.module(*(tensors[spec.name] for spec in graph.inputs))
            results = (results,) if isinstance(results, Tensor) else results
            tensors |= {spec.name: result for spec, result in zip(graph.outputs, results, strict=True)}
        head = self.query_graph()
        query: Tensor = head.module(*(tensors[spec.name] for spec in head.inputs))
        return query

    def target(self, pixels: Tensor) -> Tensor:
        """Return the image embedding through the target head."""
        target: Tensor = self.target_head(self.backbone.embed_image(pixels))
        return target

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return the normalised text embedding. Raises UnsupportedQuery unless the recipe has `text_queries`."""
        if not self.text_queries:
            return super().text_query(token_ids)
        return F.normalize(self.backbone.embed_text(token_ids), dim=-1)

    def graphs(self) -> list[Graph]:
        """Return the encoders that are needed, every head, and image encoder and target head in one."""
        query = [*self.query_encoders(), self.query_graph()]
        names = {graph.name for graph in query}
        text_alone = [graph for graph in self.text_query_graphs() if self.text_queries and graph.name not in names]
        return [*query, *text_alone, self.target_graph(), self.gallery_graph()]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Wire queries of an image, queries of a text alone if there are any, and targets.

        An absent text beside an image is the null text.
        """
        text_query = {EnsembleName.ENCODE_TEXT_QUERY: ensemble(*self.text_query_graphs())} if self.text_queries else {}
        return {
            EnsembleName.ENCODE_QUERY: ensemble(*self.query_encoders(), self.query_graph()),
            EnsembleName.ENCODE_TARGET: ensemble(self.gallery_graph()),
        } | text_query

    def target_modules(self) -> dict[str, nn.Module]:
        """Return the vision tower, and the target head if it has weights."""
        head = self.target_head
        return {"backbone": self.backbone.vision} | ({"target_head": head} if head.state_dict() else {})

    def pooling(self) -> str:
        """Return the backbone's pooling and the normalisation behind it."""
        return f"{self.backbone.pooling}, l2-normalised"

    def query_encoders(self) -> list[Graph]:
        """Return the image encoder, and the text encoder if the query head reads its outputs."""
        read = {spec.name for spec in self.query_graph().inputs}
        text = self.backbone.text_graph(self.text_lengths)
        return [self.backbone.vision_graph(), *([text] if read & {spec.name for spec in text.outputs} else [])]

    def head_graph(self, head: nn.Module, *, reads_tokens: bool = False) -> Graph:
        """Return the graph of a query head over the unnormalised embeddings, and the token ids if it reads them."""
        lengths = self.text_lengths if reads_tokens else ()
        tokens = (token_ids(lengths),) if reads_tokens else ()
        return Graph(
            GraphName.QUERY_HEAD,
            head,
            inputs=(vector("image_embedding", self.dim), vector("text_embedding", self.dim), *tokens),
            outputs=(vector("query_embedding", self.dim),),
            text_lengths=lengths,
        )

    def text_query_graphs(self) -> list[Graph]:
        """Return the graphs of a query without an image: the text encoder, and the normalisation behind it."""
        return [
            self.backbone.text_graph(self.text_lengths),
            Graph(
                GraphName.TEXT_QUERY_HEAD,
                Normalise(),
                inputs=(vector("text_embedding", self.dim),),
                outputs=(vector("query_embedding", self.dim),),
            ),
        ]

    def target_graph(self) -> Graph:
        """Return the graph from the unnormalised image embedding to the gallery embedding."""
        return Graph(
            GraphName.TARGET_HEAD,
            self.target_head,
            inputs=(vector("image_embedding", self.dim),),
            outputs=(vector("target_embedding", self.dim),),
        )

    def gallery_graph(self) -> Graph:
        """Return the graph from pixels to the gallery embedding: encoder and target head in one."""
        return Graph(
            GraphName.GALLERY,
            _Gallery(self.backbone, self.target_head),
            inputs=(pixels(self.backbone.image_size_px),),
            outputs=(vector("target_embedding", self.dim),),
        )


class _Gallery(nn.Module):
    def __init__(self, backbone: PooledBackbone, target_head: nn.Module) -> None:
        super().__init__()
        self.embed = backbone.embed_gallery_image
        self.vision = backbone.vision
        self.target_head = target_head

    def forward(self, pixels: Tensor) -> Tensor:
        target: Tensor = self.target_head(self.embed(pixels))
        return target
