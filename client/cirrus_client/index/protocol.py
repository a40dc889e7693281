"""The interfaces of indexes, and what describes one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cirrus_client.bundle import SpaceSpec
from cirrus_client.choices import member
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import InvalidFilter
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

    @property
    def value_bytes(self) -> int:
        """Size of one stored value."""
        return 4 if self is Storage.FLOAT32 else 2


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
    """Options for building an index. queries: real queries to tune and measure it on, or None.

    uri, collection: where a backend that keeps indexes elsewhere makes this one; None for one of files. A kind or
    storage may be given as a string. Raises InvalidInput for one that there is not.
    """

    kind: SearchKind = SearchKind.EXACT
    storage: Storage = Storage.FLOAT32
    queries: QuerySample | None = None
    uri: str | None = None
    collection: str | None = None

    def __post_init__(self) -> None:
        """Take strings for members."""
        object.__setattr__(self, "kind", member(SearchKind, self.kind, "kind"))
        object.__setattr__(self, "storage", member(Storage, self.storage, "storage"))


@dataclass(frozen=True)
class Hits:
    """The results of B queries, best first, and those of equal score in the order of their rows.

    rows: gallery rows, int64 [B, k]. scores: inner products, float32 [B, k]; for an image of several vectors, that of
    its best one. A backend that finds fewer than k images fills the rest with row -1.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


Selection: TypeAlias = Any
"""Some images of an index: what its items' `select` returned, and only this index understands. For FAISS, and whatever
has its items in `items.parquet`, it is whether each row may be found, bool [N]."""


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

    def search_among(self, queries: Embeddings, k: int, among: Selection) -> Hits:
        """Return the k best of some gallery rows for each query, best first, or all of them if they are fewer.

        The answer is that of an exhaustive search, whatever the kind of the index. Raises SearchIndexError as `search`
        does.
        """
        ...

    def vectors(self, rows: NDArray[np.int64]) -> Embeddings:
        """Return the stored vectors of rows, int64 [n], as float32 [n, V, D]; zeros for an image that is gone."""
        ...


def filtered(index: Index) -> FilteredIndex:
    """Return an index as one that filters. Raises InvalidFilter if its backend does not."""
    if not isinstance(index, FilteredIndex):
        raise InvalidFilter(
            "the index backend of this collection neither filters nor folds; build it with the backend faiss",
            place="filter",
        )
    return index
