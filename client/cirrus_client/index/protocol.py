"""What an index is, whatever searches behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings


@dataclass(frozen=True)
class Hits:
    """The answers to B queries, best first.

    rows: int64 [B, k], the gallery rows; scores: float32 [B, k], inner products, of the best of an item's vectors
    where it has several. An approximate index that finds fewer than k fills up with row -1.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Index(Protocol):
    """Finds the gallery rows nearest to a query embedding."""

    @property
    def space(self) -> SpaceSpec:
        """The space of the gallery's embeddings."""
        ...

    def __len__(self) -> int:
        """Number of gallery items."""
        ...

    def search(self, queries: Embeddings, k: int) -> Hits:
        """Return the k best gallery rows for each query, best first (fewer if the gallery is smaller).

        queries: float32 [B, D]. Raises SearchIndexError for another width or dtype, values that are not finite, or
        k < 1.
        """
        ...
