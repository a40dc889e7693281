"""What recipes on CLIP and BLIP share: two encoders that show every token, and a gallery graph around one head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.errors import ExportError
from cirrus_client.names import EnsembleName
from cirrus_export.backbones.backbone import Backbone, ImageTextBackbone
from cirrus_export.backbones.blip import BlipBackbone
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.graph import Graph, pixels, token_ids, vector, vectors
from cirrus_export.heads.zero_shot import Normalise
from cirrus_export.recipes.recipe import Options, Parts, Recipe
from cirrus_export.recipes.wiring import ensemble

B = TypeVar("B", bound=Backbone)


class TwoTowerRecipe(Recipe):
    """A recipe on a backbone with an image and a text encoder.

    A method says what its query head is, `query_graph`; targets are the normalised image embeddings unless it has a
    `target_head` of its own.
    """

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options)
        self._backbone: ImageTextBackbone = backbone_of(self, parts, (OpenClipBackbone, BlipBackbone))

    @property
    def backbone(self) -> ImageTextBackbone:
        """The frozen CLIP or BLIP."""
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
        image_embedding, image_tokens = self.backbone.encode_image(pixels)
        text_embedding, text_tokens = self.backbone.encode_text(token_ids)
        tensors = {
            "image_embedding": image_embedding,
            "image_tokens": image_tokens,
            "text_embedding": text_embedding,
            "text_tokens": text_tokens,
            "token_ids": token_ids,
        }
        graph = self.query_graph()
        query: Tensor = graph.module(*(tensors[spec.name] for spec in graph.inputs))
        return query

    def target(self, pixels: Tensor) -> Tensor:
        """Return the image embedding through the target head."""
        target: Tensor = self.target_head(self.backbone.encode_image(pixels)[0])
        return target

    def graphs(self) -> list[Graph]:
        """Encoders, as far as they are needed, query head, target head, and encoder and target head in one."""
        return [*self.query_encoders(), self.query_graph(), self.target_graph(), self.gallery_graph()]

    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Queries need an image; an absent text is the null text."""
        return {
            EnsembleName.ENCODE_QUERY: ensemble(*self.query_encoders(), self.query_graph()),
            EnsembleName.ENCODE_TARGET: ensemble(self.gallery_graph()),
        }

    def target_modules(self) -> dict[str, nn.Module]:
        """The vision tower, and the target head if it has weights."""
        head = self.target_head
        return {"backbone": self.backbone.vision} | ({"target_head": head} if head.state_dict() else {})

    def query_encoders(self) -> list[Graph]:
        """Return the image encoder, and the text encoder if the query head reads its outputs."""
        read = {spec.name for spec in self.query_graph().inputs}
        text = self.text_graph()
        return [self.vision_graph(), *([text] if read & {spec.name for spec in text.outputs} else [])]

    def vision_graph(self) -> Graph:
        """Pixels to the unnormalised image embedding and all image tokens."""
        backbone = self.backbone
        return Graph(
            "vision_encoder",
            _Call(backbone.encode_image, backbone.vision),
            inputs=(pixels(backbone.image_size_px),),
            outputs=(
                vector("image_embedding", backbone.dim),
                vectors("image_tokens", backbone.num_image_tokens, backbone.dim),
            ),
        )

    def text_graph(self) -> Graph:
        """Token ids to the unnormalised text embedding and all text tokens."""
        backbone = self.backbone
        length = backbone.context_length
        return Graph(
            "text_encoder",
            _Call(backbone.encode_text, backbone.text),
            inputs=(token_ids(length),),
            outputs=(vector("text_embedding", backbone.dim), vectors("text_tokens", length, backbone.dim)),
        )

    def target_graph(self) -> Graph:
        """The unnormalised image embedding to the gallery embedding."""
        return Graph(
            "target_head",
            self.target_head,
            inputs=(vector("image_embedding", self.dim),),
            outputs=(vector("target_embedding", self.dim),),
        )

    def gallery_graph(self) -> Graph:
        """Pixels to the gallery embedding, encoder and target head in one."""
        return Graph(
            "gallery",
            _Gallery(self.backbone, self.target_head),
            inputs=(pixels(self.backbone.image_size_px),),
            outputs=(vector("target_embedding", self.dim),),
        )


def backbone_of(recipe: Recipe, parts: Parts, kinds: tuple[type[B], ...]) -> B:
    """Return the backbone, if it is of a kind that a recipe works on. Raises ExportError."""
    backbone = parts.backbone
    if not isinstance(backbone, kinds):
        raise ExportError(
            f"recipe {recipe.name} works on {' and '.join(kind.label for kind in kinds)} backbones, and this one is "
            f"{backbone.label}: name another --backbone"
        )
    return backbone


class _Call(nn.Module):
    """A bound function as a module that owns the weights it uses."""

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, Tensor]], owner: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.owner = owner

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(tensor)


class _Gallery(nn.Module):
    def __init__(self, backbone: ImageTextBackbone, target_head: nn.Module) -> None:
        super().__init__()
        self.embed_image = backbone.embed_image
        self.vision = backbone.vision
        self.target_head = target_head

    def forward(self, pixels: Tensor) -> Tensor:
        target: Tensor = self.target_head(self.embed_image(pixels))
        return target
