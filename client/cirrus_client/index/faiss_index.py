"""Search by inner product with FAISS: exact or approximate, one or several vectors per image, on CPU or GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError
from cirrus_client.extras import need
from cirrus_client.forks import MadeHere
from cirrus_client.index.faiss_kinds import kind_of
from cirrus_client.index.protocol import Hits
from cirrus_client.index.ties import in_order
from cirrus_client.index.vectors import check_k, check_vectors

if TYPE_CHECKING:
    import faiss

_GPU_TEMPORARY_BYTES = 512 * 2**20
_GPU_MAX_K = 2048
_Nearest = Callable[[Embeddings, int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Returns scores and vector numbers, best first, [B, k] each."""


@dataclass(frozen=True)
class _Gpu:
    """Memory on a GPU. It is allocated once and kept, because allocating it is slow."""

    resources: faiss.StandardGpuResources

    @staticmethod
    def take() -> _Gpu:
        resources = _faiss().StandardGpuResources()
        resources.setTempMemory(_GPU_TEMPORARY_BYTES)
        return _Gpu(resources)


class FaissIndex:
    """Searches a gallery's vectors with FAISS. The score of an image of V vectors is its best one (SPRC, section 3).

    Threads may share an index. On a CPU, searches run at the same time. On a GPU, only one thread at a time may use
    FAISS, so searches run one after the other: batch queries to be fast. A process that is forked after the index was
    made gets a SearchIndexError: use "spawn".
    """

    def __init__(self, space: SpaceSpec, host: faiss.Index, *, gpu: bool = True) -> None:
        """Wrap a FAISS index. host: an index with inner-product metric, whose vector i belongs to image i // V.

        gpu: copy it to the GPU if there is one and FAISS has this kind there; False stays on the CPU.
        """
        self._space = space
        self._host: Any = host
        self._kind = kind_of(host)
        self._gpu = _Gpu.take() if gpu and self._kind.has_gpu_copy and _gpu_present() else None
        self._searched: Any = host if self._gpu is None else _faiss().index_cpu_to_gpu(self._gpu.resources, 0, host)
        self._turn = threading.Lock()
        self._reading = threading.Lock()
        self._made_here = MadeHere("a FAISS index")

    def __reduce__(self) -> NoReturn:
        """Raise SearchIndexError: a copy would take the memory of the whole index once more."""
        raise SearchIndexError("an index does not pickle; open it in each worker: open_index(folder)")

    @property
    def space(self) -> SpaceSpec:
        """The space of the gallery's embeddings."""
        return self._space

    @property
    def on_gpu(self) -> bool:
        """Whether searches run on a GPU."""
        return self._gpu is not None

    def __len__(self) -> int:
        return int(self._host.ntotal) // self.space.vectors

    def search(self, queries: Embeddings, k: int) -> Hits:
        """See `Index.search`."""
        return self._search(queries, k, self._nearest, len(self))

    def search_among(self, queries: Embeddings, k: int, among: NDArray[np.bool_]) -> Hits:
        """See `FilteredIndex.search_among`. The search is exact, also in an approximate index, and runs on the CPU."""
        if among.dtype != np.bool_ or among.shape != (len(self),):
            raise SearchIndexError(f"among: expected bool [{len(self)}], found {among.dtype} {list(among.shape)}")
        images = int(np.count_nonzero(among))
        bits = np.packbits(np.repeat(among, self.space.vectors), bitorder="little")
        selector = _faiss().IDSelectorBitmap(bits)
        searched, parameters = self._kind.exhaustive(self._host, selector)

        def nearest(queries: Embeddings, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            scores, numbers = searched.search(queries, k, params=parameters)
            return scores, numbers

        return self._search(queries, k, nearest, images)

    def vectors(self, rows: NDArray[np.int64]) -> Embeddings:
        """See `FilteredIndex.vectors`."""
        self._made_here.check(SearchIndexError)
        numbers = (rows[:, None] * self.space.vectors + np.arange(self.space.vectors)).reshape(-1)
        with self._reading:
            readable = self._kind.readable(self._host)
        found: Embeddings = readable.reconstruct_batch(numbers)
        return found.reshape(len(rows), self.space.vectors, self.space.dim)

    def _search(self, queries: Embeddings, k: int, nearest: _Nearest, images: int) -> Hits:
        """Search with a function that finds vectors. images: how many images it may find."""
        self._made_here.check(SearchIndexError)
        check_vectors("queries", queries, (self.space.dim,))
        count = min(check_k(k), images)
        contiguous = np.ascontiguousarray(queries)
        if not count:
            return Hits(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))

        def find(queries: Embeddings, k: int) -> Hits:
            if self.space.vectors > 1:
                return self._search_items(queries, k, nearest)
            scores, rows = nearest(queries, k)
            return Hits(rows=rows, scores=scores)

        return in_order(find, contiguous, count, images)

    def _nearest(self, queries: Embeddings, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores and vector numbers, best first, [B, k] each. k is at most the number of vectors.

        FAISS on a GPU limits k; larger searches run on the CPU. A query for which an index that is not exact finds
        fewer than k vectors is searched for exactly.
        """
        if self._gpu is not None and k <= _GPU_MAX_K:
            with self._turn:
                scores, numbers = self._searched.search(queries, k)
        else:
            scores, numbers = self._host.search(queries, k)
        short = np.flatnonzero((numbers < 0).any(axis=1))
        if len(short):
            searched, parameters = self._kind.exhaustive(self._host)
            scores[short], numbers[short] = searched.search(queries[short], k, params=parameters)
        return scores, numbers

    def _search_items(self, queries: Embeddings, k: int, nearest: _Nearest) -> Hits:
        """Search vectors, and keep the first vector of each image.

        Vectors come best first, and an image's score is that of its best vector. So once the n best vectors belong to
        k different images, the best vector of any other image ranks below them, and those k images are exactly the k
        best. At most (k - 1) * V + 1 vectors are needed, because k - 1 images have at most (k - 1) * V vectors. Usually
        far fewer are enough, so the number of fetched vectors starts small and grows for the queries that need more.
        """
        enough = (k - 1) * self.space.vectors + 1
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        pending = np.arange(len(queries))
        fetched = min(4 * k, enough)
        while len(pending):
            vector_scores, numbers = nearest(queries[pending], fetched)
            unfinished = []
            for query, of_query, found in zip(pending, vector_scores, numbers, strict=True):
                images = found // self.space.vectors
                first = np.sort(np.unique(images, return_index=True)[1])[:k]
                rows[query, : len(first)] = images[first]
                scores[query, : len(first)] = of_query[first]
                if len(first) < k:
                    unfinished.append(query)
            pending = np.array(unfinished, dtype=np.int64)
            fetched = min(4 * fetched, enough)
        return Hits(rows=rows, scores=scores)


def _faiss() -> ModuleType:
    """Import FAISS when an index is first built or opened. Encoding does not need it."""
    return need("faiss", "search")


def _gpu_present() -> bool:
    return hasattr(_faiss(), "StandardGpuResources") and _faiss().get_num_gpus() > 0
