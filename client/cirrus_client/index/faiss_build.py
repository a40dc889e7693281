"""Build FAISS indexes block by block. Memory holds the index and one block of the gallery.

An index that is not exact looks at some of the vectors. How many a query needs depends on where it lies in the space,
and composed queries lie elsewhere than gallery images. So the index is tuned on real query embeddings, and its
agreement with exact search is measured on other real queries.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.index.faiss_kinds import KINDS, kind_of
from cirrus_client.index.protocol import Agreement, BuildOptions, QuerySample, SearchKind, Storage
from cirrus_client.index.vectors import GalleryVectors, check_vectors

if TYPE_CHECKING:
    import faiss

_QUERIES = 512
_K = 10
_TARGET = 0.99
_TARGET_ON_GALLERY = 0.999
_EQUAL_SCORE = 1e-6
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OlderFaiss:
    """An older index. places: the number of each of its vectors in the new one, or -1 where it is gone, int64 [n]."""

    index: faiss.Index
    places: NDArray[np.int64]


def build_faiss(
    vectors: GalleryVectors, options: BuildOptions, older: OlderFaiss | None = None
) -> tuple[faiss.Index, Agreement | None]:
    """Build an index of a gallery's vectors, and measure its agreement with exact search.

    older: an index of the same kind and storage, from which is taken what did not change. The agreement is None for an
    exact float32 index, and if there are no queries to measure it on. Raises SearchIndexError if vectors or queries do
    not fit the space.
    """
    is_measured = options.kind is not SearchKind.EXACT or options.storage is not Storage.FLOAT32
    if options.queries is not None:
        check_vectors("queries", options.queries.embeddings, (vectors.space.dim,))
        if is_measured:
            _check_halves(options.queries)
    kind = KINDS[options.kind]
    if older is None:
        index = kind.build(vectors, options.storage)
    else:
        index = kind.updated(older.index, older.places, vectors, options.storage)
    if options.kind is not SearchKind.EXACT:
        return index, _tuned(index, vectors, options.queries)
    if options.queries is None or not is_measured:
        return index, None
    return index, _measured(index, vectors, options.queries)


def index_in_memory(
    space: SpaceSpec, embeddings: Embeddings, *, options: BuildOptions | None = None
) -> tuple[FaissIndex, Agreement | None]:
    """Build an index of embeddings in memory, float32 [N, *item_shape], and measure its agreement.

    See `build_faiss`. Row i is image i. The index is searched on the GPU if there is one.
    """
    host, agreement = build_faiss(GalleryVectors.in_memory(space, embeddings), options or BuildOptions())
    return FaissIndex(space, host), agreement


def _tuned(index: faiss.Index, vectors: GalleryVectors, sample: QuerySample | None) -> Agreement | None:
    if sample is None:
        _tune(index, _Judge.of(vectors, vectors.sample(_QUERIES)[:_QUERIES]), _TARGET_ON_GALLERY)
        log.warning(
            "the approximate index is tuned on the gallery's own vectors, which composed queries are unlike: its "
            "agreement with exact search is not known; give --queries to measure it"
        )
        return None
    _tune(index, _Judge.of(vectors, np.ascontiguousarray(sample.embeddings[::2][:_QUERIES])), _TARGET)
    return _measured(index, vectors, sample)


@dataclass(frozen=True)
class _Judge:
    """Compares an index with exact search. worst: each query's k-th best exact score, float32 [Q, 1]."""

    vectors: GalleryVectors
    queries: Embeddings
    worst: NDArray[np.float32]

    @staticmethod
    def of(vectors: GalleryVectors, queries: Embeddings) -> _Judge:
        return _Judge(vectors, queries, vectors.best_scores(queries, min(_K, vectors.images))[:, -1:])

    def share(self, index: faiss.Index) -> float:
        """Return the share of found images that score at least as high as the k-th best of exact search.

        Scores are compared, not images, because images with equal scores are equally good answers.
        """
        searched = FaissIndex(self.vectors.space, index, gpu=False)
        rows = searched.search(self.queries, min(_K, self.vectors.images)).rows
        as_good: NDArray[np.bool_] = self.vectors.scores_of(self.queries, rows) >= self.worst - _EQUAL_SCORE
        return float(as_good.mean())


def _tune(index: faiss.Index, judge: _Judge, target: float) -> None:
    """Search harder until the share of equally good answers reaches the target, or the kind has no more to give."""
    for _ in kind_of(index).efforts(index):
        if judge.share(index) >= target:
            return


def _measured(index: faiss.Index, vectors: GalleryVectors, sample: QuerySample) -> Agreement:
    """Measure the agreement on every second query: those that the index is not tuned on."""
    measuring = np.ascontiguousarray(sample.embeddings[1::2][:_QUERIES])
    return Agreement(
        share=_Judge.of(vectors, measuring).share(index),
        k=min(_K, vectors.images),
        queries=len(measuring),
        source=sample.source,
    )


def _check_halves(sample: QuerySample) -> None:
    if len(sample.embeddings) < 2:
        raise SearchIndexError(
            f"{sample.source}: {len(sample.embeddings)} query embeddings; an index is tuned on one half and measured "
            "on the other, so give at least 2, better some hundreds"
        )
