"""Build FAISS indexes block by block. Memory holds the index and one block of the gallery.

An approximate index (IVF) sorts vectors into lists and searches the `nprobe` lists nearest to a query. How many lists a
query needs depends on where it lies in the space, and composed queries lie elsewhere than gallery images. So the index
is tuned on real query embeddings, and its agreement with exact search is measured on other real queries.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError
from cirrus_client.extras import need
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.index.protocol import Agreement, BuildOptions, QuerySample, SearchKind, Storage
from cirrus_client.index.vectors import GalleryVectors, check_vectors

if TYPE_CHECKING:
    import faiss

_VECTORS_PER_LIST = 39  # FAISS warns of badly placed lists below
_TRAINING_VECTORS_PER_LIST = 64
_QUERIES = 512
_K = 10
_TARGET = 0.99
_TARGET_ON_GALLERY = 0.999
_EQUAL_SCORE = 1e-6
log = logging.getLogger(__name__)


def build_faiss(vectors: GalleryVectors, options: BuildOptions) -> tuple[faiss.Index, Agreement | None]:
    """Build an index of a gallery's vectors, and measure its agreement with exact search.

    The agreement is None for an exact float32 index, and if there are no queries to measure it on. Raises
    SearchIndexError if vectors or queries do not fit the space.
    """
    if options.queries is not None:
        check_vectors("queries", options.queries.embeddings, (vectors.space.dim,))
    if options.kind is SearchKind.APPROXIMATE:
        return _approximate(vectors, options)
    index = _flat(vectors, options.storage)
    if options.storage is Storage.FLOAT32 or options.queries is None:
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


def _flat(vectors: GalleryVectors, storage: Storage) -> Any:
    faiss, dim = need("faiss", "search"), vectors.space.dim
    if storage is Storage.FLOAT16:
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexFlatIP(dim)
    # Reserve all memory first: growing step by step copies the vectors repeatedly and needs three times the memory.
    index.codes.resize(len(vectors) * index.code_size)
    for block in vectors.blocks():
        index.add(block)
    return index


def _approximate(vectors: GalleryVectors, options: BuildOptions) -> tuple[faiss.IndexIVF, Agreement | None]:
    index = _ivf(vectors, options.storage)
    if options.queries is None:
        _tune(index, _Judge.of(vectors, vectors.sample(_QUERIES)[:_QUERIES]), _TARGET_ON_GALLERY)
        log.warning(
            "the approximate index is tuned on the gallery's own vectors, which composed queries are unlike: its "
            "agreement with exact search is not known; give --queries to measure it"
        )
        return index, None
    _tune(index, _Judge.of(vectors, _queries(options.queries)[::2][:_QUERIES]), _TARGET)
    return index, _measured(index, vectors, options.queries)


def _ivf(vectors: GalleryVectors, storage: Storage) -> Any:
    faiss, dim, count = need("faiss", "search"), vectors.space.dim, len(vectors)
    lists = max(1, min(int(4 * math.sqrt(count)), count // _VECTORS_PER_LIST))
    coarse = faiss.IndexFlatIP(dim)
    if storage is Storage.FLOAT16:
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, half, faiss.METRIC_INNER_PRODUCT, False)
    else:
        index = faiss.IndexIVFFlat(coarse, dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.sample(_TRAINING_VECTORS_PER_LIST * lists))
    nearest = np.concatenate([coarse.search(block, 1)[1][:, 0].astype(np.int32) for block in vectors.blocks()])
    for number, size in enumerate(np.bincount(nearest, minlength=lists)):
        index.invlists.resize(number, int(size))
        index.invlists.resize(number, 0)  # the list keeps its memory, so adding vectors does not copy it
    first = 0
    for block in vectors.blocks():
        assigned = nearest[first : first + len(block)].astype(np.int64)
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(assigned))
        first += len(block)
    return index


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


def _tune(index: faiss.IndexIVF, judge: _Judge, target: float) -> None:
    """Double the number of searched lists until the share of equally good answers reaches the target."""
    index.nprobe = 1
    while judge.share(index) < target and index.nprobe < index.nlist:
        index.nprobe = min(2 * index.nprobe, index.nlist)


def _measured(index: faiss.Index, vectors: GalleryVectors, sample: QuerySample) -> Agreement:
    """Measure the agreement on every second query: those that the index is not tuned on."""
    measuring = _queries(sample)[1::2][:_QUERIES]
    return Agreement(
        share=_Judge.of(vectors, measuring).share(index),
        k=min(_K, vectors.images),
        queries=len(measuring),
        source=sample.source,
    )


def _queries(sample: QuerySample) -> Embeddings:
    if len(sample.embeddings) < 2:
        raise SearchIndexError(
            f"{sample.source}: {len(sample.embeddings)} query embeddings; an index is tuned on one half and measured "
            "on the other, so give at least 2, better some hundreds"
        )
    return np.ascontiguousarray(sample.embeddings)
