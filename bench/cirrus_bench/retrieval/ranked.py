"""One task's encoded queries over the index of its gallery: what metrics and submissions are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cirrus_bench.retrieval import metrics
from cirrus_bench.retrieval.datasets import Query, Task
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.index.faiss_index import FaissIndex


@dataclass(frozen=True)
class Ranked:
    """A task, its queries as they were encoded, and the index of its gallery.

    queries: the task's own, or several per query where the recipe makes one of each caption. embeddings: float32
    [Q, D], L2-normalised, a row per query. without_reference: whether a query's reference image is no answer.
    reranked: the best rows of every query in a reranker's order, int64 [Q, n], or None.
    """

    task: Task
    queries: tuple[Query, ...]
    index: FaissIndex
    embeddings: Embeddings
    without_reference: bool = False
    reranked: metrics.Ranking | None = None

    def ranking(self, k: int) -> metrics.Ranking:
        """Return the k best gallery rows of every query, int64 [Q, k], or fewer where the gallery has fewer."""
        if self.reranked is None:
            return self._nearest(k)
        count = self.reranked.shape[1]
        return np.concatenate([self.reranked, self._nearest(max(k, count))[:, count:]], axis=1)[:, :k]

    def whole_ranking(self) -> metrics.Ranking:
        """Return every possible answer to every query, best first, int64 [Q, N], or [Q, N - 1] without references."""
        return self.ranking(len(self.index) - self.without_reference)

    def _nearest(self, k: int) -> metrics.Ranking:
        if not self.without_reference:
            return self.index.search(self.embeddings, k).rows
        references = [query.reference for query in self.queries if query.reference is not None]
        return metrics.without_reference(self.index.search(self.embeddings, k + 1).rows, references)
