"""What recipes on CLIP and BLIP share: two encoders that show every token, and a gallery graph around one head."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from cirrus_client.errors import ExportError
from cirrus_export.backbones.backbone import Backbone, ImageTextBackbone
from cirrus_export.backbones.blip import BlipBackbone
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.graph import Graph, pixels, token_ids, vector, vectors
from cirrus_export.recipes.recipe import Options, Parts, Recipe

B = TypeVar("B", bound=Backbone)


class TwoTowerRecipe(Recipe):
    """A recipe on a backbone with an image and a text encoder."""

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

    def target_graph(self, target_head: nn.Module) -> Graph:
        """The unnormalised image embedding to the gallery embedding."""
        return Graph(
            "target_head",
            target_head,
            inputs=(vector("image_embedding", self.dim),),
            outputs=(vector("target_embedding", self.dim),),
        )

    def gallery_graph(self, target_head: nn.Module) -> Graph:
        """Pixels to the gallery embedding, encoder and target head in one."""
        return Graph(
            "gallery",
            _Gallery(self.backbone, target_head),
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
        self.encode_image = backbone.encode_image
        self.vision = backbone.vision
        self.target_head = target_head

    def forward(self, pixels: Tensor) -> Tensor:
        target: Tensor = self.target_head(self.encode_image(pixels)[0])
        return target
