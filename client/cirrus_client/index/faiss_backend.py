"""The index backend `faiss`. It writes one file of vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.extras import need
from cirrus_client.gallery.store import Gallery
from cirrus_client.index.backend import IndexBackend, Older
from cirrus_client.index.faiss_build import OlderFaiss, build_faiss
from cirrus_client.index.faiss_file import read_faiss
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.index.faiss_kinds import KINDS
from cirrus_client.index.protocol import Agreement, BuildOptions, SearchKind, Storage
from cirrus_client.index.vectors import GalleryVectors

VECTORS = "vectors.faiss"
"""The file of an index that FAISS reads."""


class FaissBackend(IndexBackend):
    """Searches with FAISS in this process, on a GPU if there is one."""

    def build(self, gallery: Gallery, root: Path, options: BuildOptions) -> Agreement | None:
        """See `IndexBackend.build`."""
        return self._build(gallery, root, options, None)

    def update(self, gallery: Gallery, root: Path, options: BuildOptions, older: Older) -> Agreement | None:
        """See `IndexBackend.update`. The kinds with lists keep their centres, and the codes of unchanged images."""
        index = read_faiss(older.root / VECTORS, gallery.space, options.kind, options.storage)
        of_vectors = older.rows[:, None] * gallery.space.vectors + np.arange(gallery.space.vectors)
        places = np.where(older.rows[:, None] < 0, -1, of_vectors).reshape(-1)
        return self._build(gallery, root, options, OlderFaiss(index, places))

    def open(self, root: Path, space: SpaceSpec, kind: SearchKind, storage: Storage) -> FaissIndex:
        """See `IndexBackend.open`."""
        return FaissIndex(space, read_faiss(root / VECTORS, space, kind, storage))

    def _build(self, gallery: Gallery, root: Path, options: BuildOptions, older: OlderFaiss | None) -> Agreement | None:
        vectors = GalleryVectors.of(gallery)
        try:
            index, agreement = build_faiss(vectors, options, older)
        except MemoryError:
            size = KINDS[options.kind].memory_bytes(len(vectors), gallery.space.dim, options.storage)
            raise SearchIndexError(
                f"there is not enough memory for an index of kind {options.kind} in {options.storage}, which takes "
                f"about {size / 2**30:,.1f} GiB: `cirrus index --plan` says what the other kinds take"
            ) from None
        try:
            need("faiss", "search").write_index(index, str(root / VECTORS))
        except RuntimeError as error:  # so FAISS reports a full disk
            raise OSError(f"FAISS can't write the index: {error}") from None
        return agreement
