"""Inner-product search with FAISS: exact or approximate, one or several vectors per image, on a GPU if there is one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError
from cirrus_client.extras import need
from cirrus_client.forks import MadeHere
from cirrus_client.index.protocol import Hits
from cirrus_client.index.vectors import check_vectors

if TYPE_CHECKING:
    import faiss

_GPU_TEMPORARY_BYTES = 512 * 2**20
_GPU_MAX_K = 2048


@dataclass(frozen=True)
class _Gpu:
    """One GPU's memory, taken up front and kept: resources are costly to make."""

    resources: faiss.StandardGpuResources

    @staticmethod
    def take() -> _Gpu:
        resources = _faiss().StandardGpuResources()
        resources.setTempMemory(_GPU_TEMPORARY_BYTES)
        return _Gpu(resources)


class FaissIndex:
    """A gallery's vectors in FAISS. An image of V vectors scores as its best one (SPRC, section 3).

    Threads may share an index. On a CPU their searches run at the same time. FAISS on a GPU must only be used by one
    thread at a time, so there searches take turns: batch queries to be fast. A process that is forked after the index
    was made gets a SearchIndexError: use "spawn".
    """

    def __init__(self, space: SpaceSpec, host: faiss.Index, *, gpu: bool = True) -> None:
        """Search an index of FAISS on inner products. host: vector i of it belongs to image i // V.

        gpu: copy it to the GPU, if there is one; False stays on the CPU.
        """
        self._space = space
        self._host: Any = host
        self._gpu = _Gpu.take() if gpu and _gpu_present() else None
        self._searched: Any = host if self._gpu is None else _faiss().index_cpu_to_gpu(self._gpu.resources, 0, host)
        self._turn = threading.Lock()
        self._made_here = MadeHere("a FAISS index")

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
        self._made_here.check(SearchIndexError)
        check_vectors("queries", queries, (self.space.dim,))
        if k < 1:
            raise SearchIndexError(f"k must be at least 1, not {k}")
        contiguous = np.ascontiguousarray(queries)
        if self.space.vectors == 1:
            scores, rows = self._nearest(contiguous, min(k, len(self)))
            return Hits(rows=rows, scores=scores)
        return self._search_items(contiguous, min(k, len(self)))

    @staticmethod
    def open(path: Path, space: SpaceSpec) -> FaissIndex:
        """Open a file of FAISS, memory-mapped where FAISS can. Raises SearchIndexError if it can't be read."""
        faiss = _faiss()
        mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        try:
            host = faiss.read_index(str(path), mapped)
        except RuntimeError as error:
            raise SearchIndexError(f"{path} can't be read by FAISS {faiss.__version__}: {error}", path=path) from None
        return FaissIndex(space, host)

    def _nearest(self, queries: Embeddings, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and vector numbers, best first, k of them for every query; k is at most the number of vectors.

        A GPU's search is limited in k, and the host then does it. An approximate index that finds fewer than k in the
        lists that it looks into is asked again with more lists.
        """
        if self._gpu is not None and k <= _GPU_MAX_K:
            with self._turn:
                scores, numbers = self._searched.search(queries, k)
        else:
            scores, numbers = self._host.search(queries, k)
        lists = getattr(self._host, "nprobe", 0)
        while (numbers < 0).any() and lists < self._host.nlist:
            lists = min(4 * lists, self._host.nlist)
            short = np.flatnonzero((numbers < 0).any(axis=1))
            more = _faiss().SearchParametersIVF(nprobe=lists)
            scores[short], numbers[short] = self._host.search(queries[short], k, params=more)
        return scores, numbers

    def _search_items(self, queries: Embeddings, k: int) -> Hits:
        """Search the vectors, and keep each image's first.

        Vectors come best first and an image's score is its best vector's. So once the n best vectors belong to k
        different images, any other image's best vector ranks behind them all, and those k are the k best: exact. At
        most (k - 1) * V + 1 vectors are needed, because k - 1 images own no more than (k - 1) * V. Mostly far fewer
        are, so the number fetched starts small and grows for the queries that need it.
        """
        enough = (k - 1) * self.space.vectors + 1
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        pending = np.arange(len(queries))
        fetched = min(4 * k, enough)
        while len(pending):
            vector_scores, numbers = self._nearest(queries[pending], fetched)
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
    """FAISS, imported when an index is first built or opened: what only encodes does not need it."""
    return need("faiss", "search")


def _gpu_present() -> bool:
    return hasattr(_faiss(), "StandardGpuResources") and _faiss().get_num_gpus() > 0
