"""What a recipe declares: the torch original, and the graphs that it is exported as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError
from torch import Tensor, nn

from cirrus_client.bundle import CaptionJoin, Similarity
from cirrus_client.ensemble import EnsembleSpec
from cirrus_client.errors import ExportError, UnsupportedQuery
from cirrus_client.image.preprocess import Crop, Pad, PreprocessSpec
from cirrus_client.invalid_fields import first_problem
from cirrus_client.names import EnsembleName
from cirrus_client.records import Record
from cirrus_export.backbones.backbone import Backbone, Prompt
from cirrus_export.backbones.family import BackboneOptions, Sizes
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

    `query`, `target`, `text_query`, and a reranker's `condition` and `score`, are the torch original with the published
    evaluation semantics; `graphs` and `ensembles` are the same functions as they are exported. The fidelity gate
    compares the two.

    name: set by `register`. works_on: the kinds of backbone that the method can be built on. needs_head_on: those on
    which a method that needs no head elsewhere needs one. caption_join, circo_without_reference: how the published
    evaluation words queries, and whether it takes the reference image out of CIRCO's answers. head_keys: prefixes of
    keys, each of which begins some key of every head of the method; a file that another recipe uses more of is refused.
    """

    name: ClassVar[str]
    works_on: ClassVar[tuple[type[Backbone], ...]]
    similarity: ClassVar[Similarity] = Similarity.COSINE
    needs_head: ClassVar[bool] = True
    needs_head_on: ClassVar[tuple[type[Backbone], ...]] = ()
    options_type: ClassVar[type[Options]] = Options
    caption_join: ClassVar[CaptionJoin] = CaptionJoin.CAPITALISED
    circo_without_reference: ClassVar[bool] = False
    head_keys: ClassVar[tuple[str, ...]] = ()

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
    def preprocess(own: PreprocessSpec) -> PreprocessSpec:
        """Return how the published evaluation turns an image into pixels. own: the backbone's preprocessing.

        A method narrows it with `narrowed` to the transform of its authors' evaluation: padding, when an image becomes
        RGB, how the crop is rounded, and what is seen where an image is transparent.
        """
        return own

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """Lengths T to which a batch of texts may be cut and give the same query, the shortest first.

        A method whose query head reads padding has the full context alone.
        """
        return self.backbone.text_lengths

    @property
    def prompt(self) -> Prompt:
        """The words around a text before it is tokenized."""
        return Prompt()

    def instructions(self) -> dict[EnsembleName, str]:
        """Return the instruction that is in the words of each ensemble. Most recipes have none."""
        return {}

    @staticmethod
    def read_head(path: Path) -> StateDict:
        """Read a head's checkpoint as its authors save it. Raises CheckpointError."""
        return read_state_dict(path)

    @staticmethod
    def checkpoint_backbone(head: StateDict) -> StateDict | None:
        """Return the fine-tuned backbone that a head checkpoint carries, in its authors' key names, or None."""
        return None

    @staticmethod
    def check(sizes: Sizes, head: StateDict | None, options: Options) -> None:
        """Check a head and options against a backbone that is neither read nor fetched yet.

        Raises CheckpointError for a head of another width, ExportError for a backbone that the method can't use. Widths
        that are not known yet are None.
        """
        return

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

    def condition(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Return what a reranker keeps of queries, [B, ...]. Only recipes with an ENCODE_CONDITION ensemble have it."""
        raise UnsupportedQuery(f"recipe {self.name} does not define a reranker")

    def score(self, pixels: Tensor, condition: Tensor, token_ids: Tensor) -> Tensor:
        """Return how well gallery images answer the query that is beside each, float32 [B, 1]; higher is better.

        condition, token_ids: of the queries. Only recipes with a SCORE_CANDIDATE ensemble have it.
        """
        raise UnsupportedQuery(f"recipe {self.name} does not define a reranker")

    @abstractmethod
    def graphs(self) -> list[Graph]:
        """Return every graph of the bundle."""

    @abstractmethod
    def ensembles(self) -> dict[EnsembleName, EnsembleSpec]:
        """Return how the graphs are wired, by ensemble."""

    @abstractmethod
    def target_modules(self) -> dict[str, nn.Module]:
        """Return the modules, by component name, whose weights determine a gallery embedding."""

    @abstractmethod
    def pooling(self) -> str:
        """Return, in words, how the target side gets its embedding out of an image. Part of the fingerprint."""


def narrowed(own: PreprocessSpec, **changes: Any) -> PreprocessSpec:
    """Return a backbone's preprocessing with some of its fields changed. The crop is torchvision's if none is given.

    Raises ExportError if images are to be padded that the backbone was trained on stretched: the method was published
    for another kind of backbone.
    """
    pad = changes.get("pad", own.pad)
    if own.pad is Pad.STRETCH and pad is not Pad.STRETCH:
        raise ExportError(
            f"the recipe prepares images with pad={pad}, and the published weights were trained on images resized to a "
            "square out of proportion (open_clip's resize_mode squash), so embeddings would be wrong: name another "
            "--backbone or tag"
        )
    return PreprocessSpec(**own.model_dump() | {"crop": Crop.ROUND} | changes)


def parse_options(recipe: type[Recipe], options: Mapping[str, str | float | bool]) -> Options:
    """Return a recipe's options from `--option` values: "0.3" becomes 0.3 where the option is a number.

    Raises ExportError for an unknown or invalid one.
    """
    try:
        return recipe.options_type.model_validate(options)
    except ValidationError as error:
        problem = first_problem(error, options, noun="option")[1]
        known = ", ".join([*recipe.options_type.model_fields, *BackboneOptions.model_fields])
        raise ExportError(f"recipe {recipe.name}: {problem}; known options: {known}") from None
