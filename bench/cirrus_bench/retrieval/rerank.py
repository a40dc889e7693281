"""Re-rank the best of every query with the bundle's reranker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cirrus_bench.retrieval.ranked import Ranked
from cirrus_client.encoders import Reranker


def reranked(ranked: Ranked, reranker: Reranker, texts: Sequence[str], count: int) -> Ranked:
    """Return the same queries with their best `count` rows, or the whole gallery if it has fewer, ordered anew.

    texts: one per query. Raises what `Reranker.scores` does.
    """
    best = ranked.ranking(min(count, len(ranked.index) - ranked.without_reference))
    rows = np.empty_like(best)
    for place, (query, text) in enumerate(zip(ranked.queries, texts, strict=True)):
        candidates = [ranked.task.gallery[row].path for row in best[place]]
        rows[place] = best[place][np.argsort(-reranker.scores(query.image, text, candidates), kind="stable")]
    return replace(ranked, reranked=rows)
