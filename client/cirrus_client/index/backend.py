"""The base class of what builds and opens indexes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery.store import Gallery
from cirrus_client.index.items import Items
from cirrus_client.index.manifest import MANIFEST, IndexManifest, checksum_of_vectors, checksums
from cirrus_client.index.parquet_items import ITEMS, ParquetItems, write_items
from cirrus_client.index.protocol import Agreement, BuildOptions, Index, SearchKind, Storage


@dataclass(frozen=True)
class Older:
    """An index that is updated: of the same backend, space, kind and storage.

    root: the folder of its files, whose checksums are already checked. rows: the new row of each of its images, or -1
    where the image is gone or was embedded again, int64 [images].
    """

    root: Path
    rows: NDArray[np.int64]


class IndexBackend(ABC):
    """Base class of index backends, which build indexes from galleries and open them. `BACKENDS` lists them by name.

    `build` and `open` are about vectors; the images are in `items.parquet` beside them. A backend that keeps the images
    itself, as a database does, has its own `write`, `settle`, `rewrite` and `read`.

    remote: whether it takes `BuildOptions.uri` and `collection`, because it keeps indexes elsewhere.
    """

    remote: ClassVar[bool] = False

    @abstractmethod
    def build(self, gallery: Gallery, root: Path, options: BuildOptions) -> Agreement | None:
        """Build an index of a gallery and write its files into the empty folder `root`.

        Row i of the index is image i of `gallery.shards()`. Return the measured agreement, or None for an exact index
        or without queries. Raises SearchIndexError for options that the backend does not support.
        """

    def update(self, gallery: Gallery, root: Path, options: BuildOptions, older: Older) -> Agreement | None:
        """Do what `build` does, and take from an older index what did not change. A backend may build it anew."""
        return self.build(gallery, root, options)

    @abstractmethod
    def open(self, root: Path, space: SpaceSpec, kind: SearchKind, storage: Storage) -> Index:
        """Open an index that `build` wrote. The checksums of its files are already checked.

        Raises SearchIndexError if the files are not of this space, kind and storage.
        """

    def write(
        self, gallery: Gallery, root: Path, options: BuildOptions, metadata: pa.Table | None, *, out: Path
    ) -> Agreement | None:
        """Build an index with its images. metadata: see `build_index`. Else as `build`.

        out: the folder that `root` will take the place of, in which an older index may be.
        """
        agreement = self.build(gallery, root, options)
        write_items(gallery, root / ITEMS, metadata, vectors=checksum_of_vectors(checksums(root)))
        return agreement

    def settle(self, root: Path, options: BuildOptions) -> None:  # noqa: B027 - most backends have nothing to do
        """Do what may only be done once a built index is at its place, `root`, like removing older ones elsewhere."""

    def rewrite(
        self, gallery: Gallery, root: Path, options: BuildOptions, metadata: pa.Table | None, older: Older
    ) -> Agreement | None:
        """Update an index with its images, in a folder of its own. Else as `write`."""
        agreement = self.update(gallery, root, options, older)
        write_items(gallery, root / ITEMS, metadata, vectors=checksum_of_vectors(checksums(root)))
        return agreement

    def read(self, root: Path, manifest: IndexManifest, images: str) -> tuple[Index, Items]:
        """Open an index that `write` wrote, with its images. images: the root of their paths. Else as `open`."""
        index = self.open(root, manifest.space, manifest.kind, manifest.storage)
        items = ParquetItems.read(root / ITEMS, images=images, vectors=checksum_of_vectors(manifest.files))
        if not len(index) == len(items) == manifest.count:
            raise SearchIndexError(
                f"index {root}: has {len(index)} rows and {len(items)} images, {MANIFEST} says {manifest.count}; "
                "build it again with `cirrus index`",
                path=root,
            )
        return index, items
