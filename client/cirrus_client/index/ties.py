"""Hits of equal score in the order of their rows, so that an answer does not depend on how many are asked for.

Images with the same bytes have one embedding, so equal scores are common. A backend leaves open which of them are among
the k best, and in which order. Then one page of answers could repeat what another has, and leave others out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.index.protocol import Hits

_MOST_FETCHED = 16_384  # beyond those that are asked for
_GROWTH = 16  # a search costs one look at every vector, and few more for many hits

Find = Callable[[Embeddings, int], Hits]
"""Returns the k best images of each query, best first, those of equal score in any order."""


def in_order(find: Find, queries: Embeddings, k: int, images: int) -> Hits:
    """Return the k best images of each query, best first, and those of equal score by their rows.

    queries: float32 [B, D]. k: at most `images`, the number of images that can be found. Of more than 16,384 images
    that share the score of the last place, any may be in it.
    """
    fetched = min(k + 1, images)  # one more shows whether others have the last one's score
    best = _sorted(find(queries, fetched))
    rows, scores = best.rows[:, :k], best.scores[:, :k]
    tied = _open_ended(best, k)
    most = min(images, k + _MOST_FETCHED)
    while len(tied) and fetched < most:
        fetched = min(_GROWTH * fetched, most)
        wider = _sorted(find(queries[tied], fetched))
        found = min(k, wider.rows.shape[1])
        rows[tied, :found], scores[tied, :found] = wider.rows[:, :found], wider.scores[:, :found]
        tied = tied[_open_ended(wider, k)]
    return Hits(rows=np.ascontiguousarray(rows), scores=np.ascontiguousarray(scores))


def _sorted(hits: Hits) -> Hits:
    order = np.lexsort((hits.rows, -hits.scores))
    return Hits(np.take_along_axis(hits.rows, order, axis=1), np.take_along_axis(hits.scores, order, axis=1))


def _open_ended(hits: Hits, k: int) -> NDArray[np.int64]:
    """Return the queries whose k-th score may be that of images that were not fetched."""
    if hits.rows.shape[1] <= k:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero((hits.rows[:, -1] >= 0) & (hits.scores[:, k - 1] == hits.scores[:, -1]))
