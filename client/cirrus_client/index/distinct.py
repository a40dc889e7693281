"""The nearest images of which no two have the same value in a column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.index.items import Groups
from cirrus_client.index.protocol import FilteredIndex, Hits, Selection


def search_distinct(
    index: FilteredIndex, query: Embeddings, k: int, groups: Groups, among: Selection | None = None
) -> Hits:
    """Search for the best image of every group, and for those that are in none.

    query: float32 [1, D]. among: the images that may be found; None is all of them. Returns hits [1, n], where n is at
    most k, and less where there are no more. Raises SearchIndexError for a k under 1.
    """
    rows, scores = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    fetched = k
    while True:
        hits = index.search(query, fetched) if among is None else index.search_among(query, fetched, among)
        new = (hits.rows[0] >= 0) & ~np.isin(hits.rows[0], rows)  # what is in no group is found again
        rows, scores = best_first(rows, scores, hits.rows[0][new], hits.scores[0][new])
        first = first_of_groups(groups.numbers(rows))
        if len(first) >= k or np.count_nonzero(hits.rows[0] >= 0) < fetched:
            return Hits(rows[first][None, :k], scores[first][None, :k])
        fetched *= 4
        among = groups.others(rows, among)


def best_first(
    rows: NDArray[np.int64], scores: NDArray[np.float32], more: NDArray[np.int64], their_scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return what two searches found, best first, and those of equal score in the order of their rows.

    The first search of an approximate index may have missed what the second finds, so that neither goes before.
    """
    rows, scores = np.concatenate([rows, more]), np.concatenate([scores, their_scores])
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]


def first_of_groups(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of the first row of every group, and of all rows without one, in order.

    groups: the numbers of rows' groups, int64 [n], as `Groups.numbers` returns them.
    """
    _, first = np.unique(groups, return_index=True)
    places: NDArray[np.int64] = np.union1d(first, np.flatnonzero(groups < 0))
    return places
