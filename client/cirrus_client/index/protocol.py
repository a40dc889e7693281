"""What an index is, and what builds and opens one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.gallery.store import Gallery
from cirrus_client.records import Record


class SearchKind(StrEnum):
    """EXACT compares a query with every vector. APPROXIMATE compares it with the most promising ones."""

    EXACT = "exact"
    APPROXIMATE = "approximate"


class Storage(StrEnum):
    """How an index keeps vectors. FLOAT16 takes half the memory and rounds them."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class Agreement(Record):
    """How well an index that is not exact agrees with exact search, measured when it was built.

    share: of the answers among the first k, those that are as good as exact search's. queries: number of query
    embeddings that it was measured on, none of which the index was tuned on. source: where they came from.
    """

    share: float = Field(ge=0, le=1)
    k: int = Field(gt=0)
    queries: int = Field(gt=0)
    source: str


@dataclass(frozen=True)
class QuerySample:
    """Real query embeddings, float32 [Q, D], and in words where they came from."""

    embeddings: Embeddings
    source: str


@dataclass(frozen=True)
class BuildOptions:
    """How an index is to be built. queries: to tune and measure it on; None where there are none."""

    kind: SearchKind = SearchKind.EXACT
    storage: Storage = Storage.FLOAT32
    queries: QuerySample | None = None


@dataclass(frozen=True)
class Hits:
    """The answers to B queries, best first.

    rows: int64 [B, k], the gallery rows; scores: float32 [B, k], inner products, of the best of an image's vectors
    where it has several. A backend that finds fewer than k fills up with row -1.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Index(Protocol):
    """Finds the gallery rows nearest to a query embedding. Threads may share an index."""

    @property
    def space(self) -> SpaceSpec:
        """The space of the gallery's embeddings."""
        ...

    def __len__(self) -> int:
        """Number of gallery images."""
        ...

    def search(self, queries: Embeddings, k: int) -> Hits:
        """Return the k best gallery rows for each query, best first; all rows if the gallery has fewer.

        queries: float32 [B, D]. Raises SearchIndexError for another width or dtype, values that are not finite, or
        k < 1.
        """
        ...


class IndexBackend(ABC):
    """A kind of index: builds it from a gallery, and opens it again. `BACKENDS` lists them by name."""

    @abstractmethod
    def build(self, gallery: Gallery, root: Path, options: BuildOptions) -> Agreement | None:
        """Build an index of a gallery and write its files into the empty folder `root`.

        Row i of the index is the i-th image of `gallery.shards()`. Returns the measured agreement of an index that is
        not exact, or None. Raises SearchIndexError for options that the backend does not have.
        """

    @abstractmethod
    def open(self, root: Path, space: SpaceSpec) -> Index:
        """Open an index that `build` wrote, its files already checked. Raises SearchIndexError."""
