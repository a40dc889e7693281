"""The interfaces of indexes and of the backends that build and open them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.gallery.store import Gallery
from cirrus_client.records import Record


class SearchKind(StrEnum):
    """How an index searches.

    EXACT compares a query with every vector; the others with the most promising ones. APPROXIMATE looks into the
    nearest of many lists (IVF). HNSW follows a graph of neighbours. RABITQ compares small codes of the vectors in the
    nearest lists, and the exact vectors of the best of them.
    """

    EXACT = "exact"
    APPROXIMATE = "approximate"
    HNSW = "hnsw"
    RABITQ = "rabitq"


class Storage(StrEnum):
    """How an index stores vectors. FLOAT16 needs half the memory and rounds them."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class Agreement(Record):
    """Agreement of an index with exact search, measured when the index was built.

    share: fraction of the first k answers that score at least as high as the k-th best of exact search. queries: number
    of query embeddings that it was measured on; the index was not tuned on them. source: where they came from.
    """

    share: float = Field(ge=0, le=1)
    k: int = Field(gt=0)
    queries: int = Field(gt=0)
    source: str


@dataclass(frozen=True)
class QuerySample:
    """Real query embeddings, float32 [Q, D]. source: a description of where they came from."""

    embeddings: Embeddings
    source: str


@dataclass(frozen=True)
class BuildOptions:
    """Options for building an index. queries: real queries to tune and measure it on, or None."""

    kind: SearchKind = SearchKind.EXACT
    storage: Storage = Storage.FLOAT32
    queries: QuerySample | None = None


@dataclass(frozen=True)
class Hits:
    """The results of B queries, best first.

    rows: gallery rows, int64 [B, k]. scores: inner products, float32 [B, k]; for an image of several vectors, that of
    its best one. A backend that finds fewer than k images fills the rest with row -1.
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
        """Return the k best gallery rows for each query, best first, or all rows if the gallery has fewer.

        queries: float32 [B, D]. Raises SearchIndexError if width or dtype differ, values are not finite, or k < 1.
        """
        ...


@runtime_checkable
class FilteredIndex(Index, Protocol):
    """An index that can also search among some of its rows, and give vectors back. Threads may share it."""

    def search_among(self, queries: Embeddings, k: int, among: NDArray[np.bool_]) -> Hits:
        """Return the k best of some gallery rows for each query, best first, or all of them if they are fewer.

        among: whether each row may be found, bool [N]. The answer is that of an exhaustive search, whatever the kind of
        the index. Raises SearchIndexError as `search` does.
        """
        ...

    def vectors(self, rows: NDArray[np.int64]) -> Embeddings:
        """Return the stored vectors of rows, int64 [n], as float32 [n, V, D]."""
        ...


@dataclass(frozen=True)
class Older:
    """An index that is updated: of the same backend, space, kind and storage.

    root: the folder of its files, whose checksums are already checked. rows: the new row of each of its images, or -1
    where the image is gone or was embedded again, int64 [images].
    """

    root: Path
    rows: NDArray[np.int64]


class IndexBackend(ABC):
    """Base class of index backends, which build indexes from galleries and open them. `BACKENDS` lists them by name."""

    @abstractmethod
    def build(self, gallery: Gallery, root: Path, options: BuildOptions) -> Agreement | None:
        """Build an index of a gallery and write its files into the empty folder `root`.

        Row i of the index is image i of `gallery.shards()`. Return the measured agreement, or None for an exact index
        or without queries. Raises SearchIndexError for options that the backend does not support.
        """

    def update(self, gallery: Gallery, root: Path, options: BuildOptions, older: Older) -> Agreement | None:
        """Do what `build` does, and take from an older index what did not change. A backend may build it anew."""
        return self.build(gallery, root, options)

    @abstractmethod
    def open(self, root: Path, space: SpaceSpec, kind: SearchKind, storage: Storage) -> Index:
        """Open an index that `build` wrote. The checksums of its files are already checked.

        Raises SearchIndexError if the files are not of this space, kind and storage.
        """
