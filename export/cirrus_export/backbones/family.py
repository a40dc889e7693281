"""A backbone family: the one file that knows how its models are named, recognised, loaded and prepared for.

A family inside the tree is a line in `registry.py`. One outside it is an entry point of the group `cirrus.backbones`,
or is named on the command line: `--backbone module:Class` or `FILE.py:Class`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cirrus_client.errors import ExportError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.records import Record
from cirrus_export.backbones.backbone import Backbone
from cirrus_export.checkpoints.folder import weights_file
from cirrus_export.checkpoints.state import StateDict, read_state_dict

FROM_CHECKPOINT = "from-checkpoint"
"""The value of `--backbone` that takes family and sizes from the weights."""


class BackboneOptions(Record):
    """What a user says of a backbone that its weights do not show; None leaves it to the weights.

    quick_gelu: True if a CLIP was trained with QuickGELU, False if with GELU. image_size_px: side of the square that
    images are stretched to, for models that take any size.
    """

    quick_gelu: bool | None = None
    image_size_px: int | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from. Without any of the first four they are random, drawn from a seed.

    tag: published weights, by the family's name for them. file: a checkpoint that is not read yet. state: the tensors
    of one that is. folder: a checkpoint that is a folder. tag and file, or state: a tag's file that was fetched
    elsewhere. fine_tuned: the state was saved beside a head. options: what the user says of them.
    """

    tag: str | None = None
    file: Path | None = None
    state: StateDict | None = None
    folder: Path | None = None
    fine_tuned: bool = False
    options: BackboneOptions = field(default_factory=BackboneOptions)

    def read(self) -> Weights:
        """Return these weights with the file read, if there is one. Raises CheckpointError."""
        return self if self.file is None else replace(self, state=read_state_dict(self.file), file=None)

    def from_folder(self) -> Weights:
        """Return these weights with the folder's file read, if there is a folder. Raises CheckpointError."""
        return self if self.folder is None else replace(self, file=weights_file(self.folder), folder=None).read()


@dataclass(frozen=True)
class Sizes:
    """What is known of a backbone before it is built: widths of its embeddings, of a word, and of an image token.

    wordings: names of the published wordings of a vision-language embedder.
    """

    dim: int | None = None
    word_width: int | None = None
    image_width: int | None = None
    wordings: tuple[str, ...] = ()


class Family(ABC):
    """Backbones that are loaded alike.

    backbone_type: what they offer to a recipe. options: the `BackboneOptions` that they have.
    """

    backbone_type: ClassVar[type[Backbone]]
    options: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the values of `--backbone` that are this family's."""

    @abstractmethod
    def kind_named(self, name: str) -> str:
        """Return, in words, which kind of checkpoint a name needs, like "a BLIP (blip-base-coco)"."""

    @abstractmethod
    def kind_of(self, state: StateDict) -> str | None:
        """Return the kind of a checkpoint in the same words, or None if it is not this family's."""

    @abstractmethod
    def load(self, name: str | None, weights: Weights, tokenizer: Path | None) -> Backbone:
        """Build a frozen backbone.

        name: None takes the sizes from `weights.state`. tokenizer: a `tokenizer.json`, for models whose own is
        published apart from their code. Raises ExportError for weights that this family has not, or that can't be
        fetched; CheckpointError for a file that does not fit; KeyError if the sizes can't be told from the state.
        """

    def tags(self, name: str) -> Sequence[str]:
        """Return the published weights of a name."""
        return ()

    def check(self, name: str) -> None:
        """Raise ExportError for a model that can't be exported, by its configuration: nothing is read or fetched."""
        return

    def sizes(self, name: str) -> Sizes:
        """Return what is known before anything is read or fetched."""
        return Sizes()

    def preprocess(self, name: str, weights: Weights) -> PreprocessSpec | None:
        """Return the backbone's own preprocessing where it is known before anything is fetched, else None."""
        return None


def refuse_tokenizer(name: str | None, tokenizer: Path | None) -> None:
    """Raise ExportError if a tokenizer is given to a backbone whose own is part of Cirrus."""
    if tokenizer is not None:
        raise ExportError(f"--tokenizer {tokenizer}: the tokenizer of {name} is part of Cirrus: leave --tokenizer away")
