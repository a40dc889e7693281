"""What a recipe declares: the torch original, and the graphs it is exported as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ValidationError
from torch import Tensor, nn

from cirrus_client.bundle import Contract, EnsembleName, Similarity
from cirrus_client.ensemble import EMBEDDING, EnsembleSpec, StepSpec, image_step, text_step
from cirrus_client.errors import ExportError, UnsupportedQuery
from cirrus_client.preprocess import PreprocessSpec
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.graph import Graph, pixels, token_ids, vector, vectors


class Options(Contract):
    """A recipe's options; the base has none."""


@dataclass(frozen=True)
class Parts:
    """What a recipe is built from.

    head: the trained head's state dict as its authors saved it, or None to draw random weights.
    """

    backbone: OpenClipBackbone
    head: StateDict | None


class Recipe(ABC):
    """One CIR method, built.

    `query`, `target` and `text_query` are the torch original with the published evaluation semantics; `graphs` and
    `ensembles` are the same functions as they are exported. The fidelity gate compares the two.
    """

    name: ClassVar[str]
    similarity: ClassVar[Similarity]
    needs_head: ClassVar[bool]
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, parts: Parts, options: Options) -> None:
        self.backbone = parts.backbone
        self.options = options

    @staticmethod
    @abstractmethod
    def preprocess(image_size_px: int) -> PreprocessSpec:
        """Return how the published evaluation turns an image into pixels."""

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the fine-tuned backbone that a head checkpoint carries, in OpenAI's key names, or None."""
        return None

    @abstractmethod
    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return query embeddings [B, D] of reference images and edit texts; an absent text is empty."""

    @abstractmethod
    def target(self, pixels: Tensor) -> Tensor:
        """Return gallery embeddings [B, D]."""

    def text_query(self, token_ids: Tensor) -> Tensor:
        """Return query embeddings [B, D] of texts alone. Only recipes with an ENCODE_TEXT_QUERY ensemble have it."""
        raise UnsupportedQuery(f"recipe {self.name} does not define queries without an image")

    @abstractmethod
    def graphs(self) -> list[Graph]:
        """Return every graph of the bundle."""

    @abstractmethod
    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Return how the graphs are wired."""

    @abstractmethod
    def target_modules(self) -> dict[str, nn.Module]:
        """Return the modules, by component name, whose weights determine a gallery embedding."""

    def pooling(self) -> str:
        """Return, in words, how the target side gets one embedding out of an image; part of the fingerprint."""
        return "cls, projected, l2-normalised"

    def vision_graph(self) -> Graph:
        """Pixels to the unnormalised image embedding and all image tokens."""
        dim = self.backbone.dim
        return Graph(
            "vision_encoder",
            _Call(self.backbone.encode_image, self.backbone.clip.visual),
            inputs=(pixels(self.backbone.image_size_px),),
            outputs=(
                vector("image_embedding", dim),
                vectors("image_tokens", self.backbone.num_image_tokens, dim),
            ),
        )

    def text_graph(self) -> Graph:
        """Token ids to the unnormalised text embedding and all text tokens."""
        length, dim = self.backbone.context_length, self.backbone.dim
        return Graph(
            "text_encoder",
            _Call(self.backbone.encode_text, self.backbone),
            inputs=(token_ids(length),),
            outputs=(vector("text_embedding", dim), vectors("text_tokens", length, dim)),
        )

    def gallery_graph(self, target_head: nn.Module) -> Graph:
        """Pixels to the gallery embedding, encoder and target head in one."""
        return Graph(
            "gallery",
            _Gallery(self.backbone, target_head),
            inputs=(pixels(self.backbone.image_size_px),),
            outputs=(vector("target_embedding", self.backbone.dim),),
        )


def target_ensemble() -> EnsembleSpec:
    """Image bytes to the gallery embedding, through the fused gallery graph."""
    gallery = StepSpec(model="gallery", inputs={"pixels": "pixels"}, outputs={"target_embedding": EMBEDDING})
    return EnsembleSpec(inputs=("image",), steps=(image_step(), gallery))


def query_ensemble(query_head: StepSpec) -> EnsembleSpec:
    """Image bytes and an optional text to the query embedding, through both encoders and a query head."""
    return EnsembleSpec(
        inputs=("image", "text"),
        optional=("text",),
        steps=(
            image_step(),
            text_step(),
            _encoder_step("vision_encoder", "pixels", query_head),
            _encoder_step("text_encoder", "token_ids", query_head),
            query_head,
        ),
    )


def text_query_ensemble(text_query_head: StepSpec) -> EnsembleSpec:
    """A text to the query embedding, through the text encoder and a head."""
    return EnsembleSpec(
        inputs=("text",),
        steps=(text_step(), _encoder_step("text_encoder", "token_ids", text_query_head), text_query_head),
    )


def head_step(head: Graph) -> StepSpec:
    """A head whose ports are fed by tensors of the same names and whose result is the embedding."""
    return StepSpec(
        model=head.name,
        inputs={spec.name: spec.name for spec in head.inputs},
        outputs={head.outputs[0].name: EMBEDDING},
    )


def _encoder_step(encoder: str, port: str, head: StepSpec) -> StepSpec:
    """An encoder, of whose outputs only those are kept that the head takes."""
    kind = encoder.removesuffix("_encoder").replace("vision", "image")
    outputs = (f"{kind}_embedding", f"{kind}_tokens")
    taken = {name: name for name in outputs if name in head.inputs.values()}
    return StepSpec(model=encoder, inputs={port: port}, outputs=taken)


RECIPES: dict[str, type[Recipe]] = {}


def register(name: str) -> Callable[[type[Recipe]], type[Recipe]]:
    """Class decorator: make a recipe available under this name."""

    def add(recipe: type[Recipe]) -> type[Recipe]:
        recipe.name = name
        RECIPES[name] = recipe
        return recipe

    return add


def recipe_named(name: str) -> type[Recipe]:
    """Return a registered recipe. Raises ExportError naming those there are."""
    try:
        return RECIPES[name]
    except KeyError:
        raise ExportError(f"there is no recipe '{name}'; there are: {', '.join(sorted(RECIPES))}") from None


def parse_options(recipe: type[Recipe], options: Mapping[str, str]) -> Options:
    """Return the recipe's options from their text form. Raises ExportError for an unknown or invalid one."""
    try:
        return recipe.options_type.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(recipe.options_type.model_fields) or "none"
        option = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"recipe {recipe.name}: option '{option}': {first['msg']}; known options: {known}") from None


class _Call(nn.Module):
    """A bound function as a module that owns the weights it uses."""

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, Tensor]], owner: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.owner = owner

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(tensor)


class _Gallery(nn.Module):
    def __init__(self, backbone: OpenClipBackbone, target_head: nn.Module) -> None:
        super().__init__()
        self.encode_image = backbone.encode_image
        self.visual = backbone.clip.visual
        self.target_head = target_head

    def forward(self, pixels: Tensor) -> Tensor:
        target: Tensor = self.target_head(self.encode_image(pixels)[0])
        return target
