"""Inner-product search with FAISS: exact or approximate, one or several vectors an item, on a GPU if there is one."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError
from cirrus_client.extras import need
from cirrus_client.files import atomic_path, sha256_of_file, write_model
from cirrus_client.index.protocol import Hits
from cirrus_client.records import Record

if TYPE_CHECKING:
    import faiss

MANIFEST = "index.json"
_VECTORS = "vectors.faiss"
_GPU_TEMPORARY_BYTES = 512 * 2**20
_GPU_MAX_K = 2048
_TRAINING_VECTORS_A_LIST = 39  # fewer, and FAISS warns that the lists are poorly placed
_TUNING_QUERIES = 256
_TUNING_K = 10
_TUNED_AGREEMENT = 0.99


class SearchKind(StrEnum):
    """EXACT compares a query with every vector. APPROXIMATE (FAISS IVF) looks into the nearest lists alone."""

    EXACT = "exact"
    APPROXIMATE = "approximate"


class IndexManifest(Record):
    """`index.json`: the space, number of items and sha256 of the vectors in `vectors.faiss`.

    agreement: for an approximate index, the share of the exact ten nearest vectors that it found, over a sample of
    the gallery's own vectors, when it was built.
    """

    space: SpaceSpec
    count: int
    sha256: str
    kind: SearchKind = SearchKind.EXACT
    agreement: float | None = Field(default=None, ge=0, le=1)


@dataclass(frozen=True)
class _Gpu:
    """One GPU's memory, taken up front and kept: resources are costly to make (DESIGN 4.10)."""

    resources: faiss.StandardGpuResources

    @staticmethod
    def take() -> _Gpu:
        resources = _faiss().StandardGpuResources()
        resources.setTempMemory(_GPU_TEMPORARY_BYTES)
        return _Gpu(resources)


class FaissIndex:
    """The gallery's vectors in FAISS. An item of V vectors scores as its best one (SPRC, section 3).

    FAISS on a GPU must only be used by one thread at a time, so searches take turns; batch queries to be fast.
    """

    def __init__(self, space: SpaceSpec, embeddings: Embeddings, *, kind: SearchKind = SearchKind.EXACT) -> None:
        """Build an index over gallery embeddings, float32 [N, D] or [N, V, D], row i of which is gallery item i.

        Raises SearchIndexError if they don't fit the space or are not finite.
        """
        _check_vectors("gallery", embeddings, space.item_shape)
        vectors = embeddings.reshape(-1, space.dim)
        if kind is SearchKind.APPROXIMATE:
            approximate, agreement = _build_approximate(vectors)
            self._adopt(space, approximate, kind, agreement)
        else:
            exact = _faiss().IndexFlatIP(space.dim)
            exact.add(vectors)
            self._adopt(space, exact, kind, None)

    @property
    def space(self) -> SpaceSpec:
        """The space of the gallery's embeddings."""
        return self._space

    @property
    def on_gpu(self) -> bool:
        """Whether searches run on a GPU."""
        return self._gpu is not None

    @property
    def agreement(self) -> float | None:
        """For an approximate index, its measured agreement with exact search; see `IndexManifest`."""
        return self._agreement

    def __len__(self) -> int:
        return int(self._host.ntotal) // self.space.vectors

    def search(self, queries: Embeddings, k: int) -> Hits:
        """See `Index.search`."""
        _check_vectors("queries", queries, (self.space.dim,))
        if k < 1:
            raise SearchIndexError(f"k must be at least 1, not {k}")
        contiguous = np.ascontiguousarray(queries)
        if self.space.vectors == 1:
            scores, rows = self._nearest(contiguous, min(k, len(self)))
            return Hits(rows=rows, scores=scores)
        return self._search_items(contiguous, min(k, len(self)))

    def save(self, root: Path) -> None:
        """Write `vectors.faiss` and, as the last file, `index.json` into a directory."""
        with atomic_path(root / _VECTORS) as path:
            _faiss().write_index(self._host, str(path))
            digest = sha256_of_file(path)
        manifest = IndexManifest(
            space=self.space, count=len(self), sha256=digest, kind=self._kind, agreement=self._agreement
        )
        write_model(root / MANIFEST, manifest)

    @staticmethod
    def open(root: Path) -> FaissIndex:
        """Read an index. Raises SearchIndexError if it is missing, incomplete or corrupted."""
        manifest = _read_manifest(root)
        path = root / _VECTORS
        if not path.is_file():
            raise SearchIndexError(f"index {root}: file {_VECTORS} is missing; build it again with `cirrus index`")
        if sha256_of_file(path) != manifest.sha256:
            raise SearchIndexError(
                f"index {root}: file {_VECTORS} is corrupted (its sha256 differs from {MANIFEST}); "
                "build it again with `cirrus index`"
            )
        index = FaissIndex.__new__(FaissIndex)
        index._adopt(manifest.space, _faiss().read_index(str(path)), manifest.kind, manifest.agreement)
        return index

    def _adopt(self, space: SpaceSpec, host: faiss.Index, kind: SearchKind, agreement: float | None) -> None:
        self._space = space
        self._host = host
        self._kind = kind
        self._agreement = agreement
        self._gpu = _Gpu.take() if _gpu_present() else None
        self._searched = _faiss().index_cpu_to_gpu(self._gpu.resources, 0, host) if self._gpu else host
        self._turn = threading.Lock()

    def _nearest(self, queries: Embeddings, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and vector numbers, best first; a GPU's search is limited in k, and the host then does it."""
        searched = self._host if self._gpu and k > _GPU_MAX_K else self._searched
        with self._turn:
            scores, numbers = searched.search(queries, k)
        return scores, numbers

    def _search_items(self, queries: Embeddings, k: int) -> Hits:
        """Search the vectors, and keep each item's first.

        Vectors come best first and an item's score is its best vector's. So once the n best vectors belong to k
        different items, any other item's best vector ranks behind them all, and those k are the k best: exact. At
        most (k - 1) * V + 1 vectors are needed, because k - 1 items own no more than (k - 1) * V. Mostly far fewer
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
                first = _first_of_each(np.where(found < 0, -1, found // self.space.vectors))[:k]
                rows[query, : len(first)] = found[first] // self.space.vectors
                scores[query, : len(first)] = of_query[first]
                if len(first) < k and fetched < enough:
                    unfinished.append(query)
            pending = np.array(unfinished, dtype=np.int64)
            fetched = min(4 * fetched, enough)
        return Hits(rows=rows, scores=scores)


def _first_of_each(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions, ascending, at which an item other than -1 occurs for the first time."""
    values, first = np.unique(items, return_index=True)
    return np.sort(first[values >= 0])


def _build_approximate(vectors: Embeddings) -> tuple[faiss.IndexIVFFlat, float]:
    """Return an IVF index that looks into as many lists as its agreement with exact search needs, and that figure."""
    count, dim = vectors.shape
    lists = max(1, min(int(4 * math.sqrt(count)), count // _TRAINING_VECTORS_A_LIST))
    index = _faiss().IndexIVFFlat(_faiss().IndexFlatIP(dim), dim, lists, _faiss().METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    k = min(_TUNING_K, count)
    queries = np.ascontiguousarray(vectors[:: max(1, count // _TUNING_QUERIES)][:_TUNING_QUERIES])
    _, exact = _faiss().knn(queries, vectors, k, metric=_faiss().METRIC_INNER_PRODUCT)
    index.nprobe = 1
    while True:
        _, found = index.search(queries, k)
        shared = [len(set(left) & set(right)) for left, right in zip(exact, found, strict=True)]
        agreement = sum(shared) / exact.size
        if agreement >= _TUNED_AGREEMENT or index.nprobe >= lists:
            return index, agreement
        index.nprobe = min(2 * index.nprobe, lists)


def _faiss() -> ModuleType:
    """FAISS, imported when an index is first built or opened: what only encodes does not need it."""
    return need("faiss", "search")


def _gpu_present() -> bool:
    return hasattr(_faiss(), "StandardGpuResources") and _faiss().get_num_gpus() > 0


def _check_vectors(what: str, vectors: Embeddings, shape: tuple[int, ...]) -> None:
    if vectors.ndim < 1 or vectors.shape[1:] != shape:
        expected = ", ".join(["n", *(str(size) for size in shape)])
        raise SearchIndexError(f"{what}: expected shape [{expected}], found {list(vectors.shape)}")
    if vectors.dtype != np.float32:
        raise SearchIndexError(f"{what}: expected float32, found {vectors.dtype}")
    finite = np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1)
    if not finite.all():
        raise SearchIndexError(f"{what}: row {int(np.argmin(finite))} holds values that are not finite")


def _read_manifest(root: Path) -> IndexManifest:
    path = root / MANIFEST
    try:
        return IndexManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SearchIndexError(f"{root} is not an index: it has no {MANIFEST}; make one with `cirrus index`") from None
    except ValidationError as error:
        raise SearchIndexError(f"index {root}: {MANIFEST} can't be read: {error}") from None
