"""What a recipe declares: the torch original, and the graphs it is exported as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ValidationError
from torch import Tensor, nn

from cirrus_client.bundle import CaptionJoin, Similarity
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.errors import ExportError, UnsupportedQuery
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.names import EnsembleName
from cirrus_client.records import Record
from cirrus_export.backbones.backbone import Backbone, Prompt
from cirrus_export.checkpoints.state import StateDict, read_state_dict
from cirrus_export.graph import Graph


class Options(Record):
    """A recipe's options; the base has none."""


@dataclass(frozen=True)
class Parts:
    """What a recipe is built from.

    head: the trained head's state dict as its authors saved it, or None to draw random weights.
    """

    backbone: Backbone
    head: StateDict | None


class Recipe(ABC):
    """One CIR method, built.

    `query`, `target` and `text_query` are the torch original with the published evaluation semantics; `graphs` and
    `ensembles` are the same functions as they are exported. The fidelity gate compares the two.
    """

    name: ClassVar[str]
    similarity: ClassVar[Similarity] = Similarity.COSINE
    needs_head: ClassVar[bool] = True
    options_type: ClassVar[type[Options]] = Options
    caption_join: ClassVar[CaptionJoin] = CaptionJoin.CAPITALISED

    def __init__(self, parts: Parts, options: Options) -> None:
        self.options = options

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """The frozen backbone, of the kind that the recipe works on."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width D of query and gallery embeddings."""

    @property
    def vectors(self) -> int:
        """Vectors V of a gallery embedding."""
        return 1

    @staticmethod
    @abstractmethod
    def preprocess(image_size_px: int) -> PreprocessSpec:
        """Return how the published evaluation turns an image into pixels."""

    @property
    def prompt(self) -> Prompt:
        """How a text is worded before it is tokenized."""
        return Prompt()

    @staticmethod
    def read_head(path: Path) -> StateDict:
        """Read a head's checkpoint as its authors save it. Raises CheckpointError."""
        return read_state_dict(path)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the fine-tuned backbone that a head checkpoint carries, in its authors' key names, or None."""
        return None

    def query(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return query embeddings [B, D] of reference images and edit texts; an absent text is the null text.

        Only recipes with an ENCODE_QUERY ensemble have it.
        """
        raise UnsupportedQuery(f"recipe {self.name} does not define queries with an image")

    @abstractmethod
    def target(self, pixels: Tensor) -> Tensor:
        """Return gallery embeddings [B, D], or [B, V, D] where an image has several."""

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
        """Return, in words, how the target side gets its embedding out of an image; part of the fingerprint."""
        return "cls, projected, l2-normalised"


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


def parse_options(recipe: type[Recipe], options: Mapping[str, str | float | bool]) -> Options:
    """Return the recipe's options, texts read as what they stand for.

    Raises ExportError for an unknown or invalid one.
    """
    try:
        return recipe.options_type.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(recipe.options_type.model_fields) or "none"
        option = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"recipe {recipe.name}: option '{option}': {first['msg']}; known options: {known}") from None
