"""Exact inner-product search with FAISS, on a GPU where there is one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from pydantic import ValidationError

from cirrus_client.bundle import Contract, SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError
from cirrus_client.files import atomic_path, sha256_of_file, write_atomically
from cirrus_client.index.protocol import Hits

MANIFEST = "index.json"
_VECTORS = "vectors.faiss"
_GPU_TEMPORARY_BYTES = 512 * 2**20


class IndexManifest(Contract):
    """`index.json`: the space, number and sha256 of the vectors in `vectors.faiss`."""

    space: SpaceSpec
    count: int
    sha256: str


@dataclass(frozen=True)
class _Gpu:
    """One GPU's memory, taken up front and kept: resources are costly to make (DESIGN 4.10)."""

    resources: faiss.StandardGpuResources

    @staticmethod
    def take() -> _Gpu:
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(_GPU_TEMPORARY_BYTES)
        return _Gpu(resources)


class FlatIndex:
    """Every query against every gallery vector: exact, and what approximate indexes are measured by.

    FAISS on a GPU must only be used by one thread at a time, so searches take turns; batch queries to be fast.
    """

    def __init__(self, space: SpaceSpec, embeddings: Embeddings) -> None:
        """Build an index over gallery embeddings, float32 [N, D], row i of which is gallery item i.

        Raises SearchIndexError if they don't fit the space or are not finite.
        """
        _check_vectors("gallery", embeddings, space.dim)
        index = faiss.IndexFlatIP(space.dim)
        index.add(embeddings)
        self._adopt(space, index)

    @property
    def space(self) -> SpaceSpec:
        """The space of the gallery's embeddings."""
        return self._space

    @property
    def on_gpu(self) -> bool:
        """Whether searches run on a GPU."""
        return self._gpu is not None

    def __len__(self) -> int:
        return int(self._host.ntotal)

    def search(self, queries: Embeddings, k: int) -> Hits:
        """See `Index.search`."""
        _check_vectors("queries", queries, self.space.dim)
        if k < 1:
            raise SearchIndexError(f"k must be at least 1, not {k}")
        with self._turn:
            scores, rows = self._searched.search(np.ascontiguousarray(queries), min(k, len(self)))
        return Hits(rows=rows, scores=scores)

    def save(self, root: Path) -> None:
        """Write `vectors.faiss` and, as the last file, `index.json` into a directory."""
        with atomic_path(root / _VECTORS) as path:
            faiss.write_index(self._host, str(path))
            digest = sha256_of_file(path)
        manifest = IndexManifest(space=self.space, count=len(self), sha256=digest)
        write_atomically(root / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")

    @staticmethod
    def open(root: Path) -> FlatIndex:
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
        index = FlatIndex.__new__(FlatIndex)
        index._adopt(manifest.space, faiss.read_index(str(path)))
        return index

    def _adopt(self, space: SpaceSpec, host: faiss.Index) -> None:
        self._space = space
        self._host = host
        self._gpu = _Gpu.take() if _gpu_present() else None
        self._searched = faiss.index_cpu_to_gpu(self._gpu.resources, 0, host) if self._gpu else host
        self._turn = threading.Lock()


def _gpu_present() -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _check_vectors(what: str, vectors: Embeddings, dim: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise SearchIndexError(f"{what}: expected shape [n, {dim}], found {list(vectors.shape)}")
    if vectors.dtype != np.float32:
        raise SearchIndexError(f"{what}: expected float32, found {vectors.dtype}")
    finite = np.isfinite(vectors).all(axis=1)
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
