"""The index backend `faiss`. It writes one file of vectors."""

from __future__ import annotations

from pathlib import Path

from cirrus_client.bundle import SpaceSpec
from cirrus_client.extras import need
from cirrus_client.gallery.store import Gallery
from cirrus_client.index.faiss_build import build_faiss
from cirrus_client.index.faiss_file import read_faiss
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.index.protocol import Agreement, BuildOptions, IndexBackend, SearchKind, Storage
from cirrus_client.index.vectors import GalleryVectors

_VECTORS = "vectors.faiss"


class FaissBackend(IndexBackend):
    """Searches with FAISS in this process, on a GPU if there is one."""

    def build(self, gallery: Gallery, root: Path, options: BuildOptions) -> Agreement | None:
        """See `IndexBackend.build`."""
        index, agreement = build_faiss(GalleryVectors.of(gallery), options)
        try:
            need("faiss", "search").write_index(index, str(root / _VECTORS))
        except RuntimeError as error:  # so FAISS reports a full disk
            raise OSError(f"FAISS can't write the index: {error}") from None
        return agreement

    def open(self, root: Path, space: SpaceSpec, kind: SearchKind, storage: Storage) -> FaissIndex:
        """See `IndexBackend.open`."""
        return FaissIndex(space, read_faiss(root / _VECTORS, space, kind, storage))
