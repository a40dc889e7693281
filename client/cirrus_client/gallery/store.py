"""Read an embedded gallery. What is read is compared with its checksum first, and its rows must have unit length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import GalleryError
from cirrus_client.files import sha256_of_file
from cirrus_client.gallery.layout import (
    EMBED_AGAIN,
    QUERIES,
    GalleryManifest,
    Layout,
    QueriesRecord,
    ShardRecord,
    read_manifest,
)
from cirrus_client.records import read_record

_LENGTH_TOLERANCE = 0.01
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class GalleryShard:
    """A complete shard. embeddings: float32 [rows, *item_shape], memory-mapped. items: row i is the image of row i."""

    id: str
    embeddings: Embeddings
    items: pa.Table


class Gallery:
    """Reads the shards of a gallery that were complete when it was opened.

    Threads may share a gallery. It can be read while other processes write it. A file is checked when it is first read.
    """

    def __init__(self, root: Path, manifest: GalleryManifest, shards: dict[str, ShardRecord]) -> None:
        self.root = root
        self.space = manifest.space
        self.images = manifest.images
        self._shards = shards
        self._layout = Layout(root)
        self._checked: set[str] = set()

    def __len__(self) -> int:
        """Number of embedded images."""
        return sum(self.rows.values())

    @property
    def rows(self) -> Mapping[str, int]:
        """Number of images of every shard, by its id, in the order of `shards`."""
        return {shard: record.rows for shard, record in self._shards.items()}

    @property
    def checksums(self) -> Mapping[str, str]:
        """The sha256 of every shard's embeddings, by its id, in the order of `shards`."""
        return {
            shard: record.files[str(self._layout.embeddings(shard).relative_to(self.root))]
            for shard, record in self._shards.items()
        }

    def shards(self) -> Iterator[GalleryShard]:
        """Yield the shards in the order of their ids. Raises GalleryError for a damaged shard."""
        for shard, record in self._shards.items():
            yield GalleryShard(shard, self.shard_embeddings(shard), self._layout.accepted_table(shard, record))

    @property
    def embeddings(self) -> Embeddings:
        """All embeddings, float32 [N, *item_shape], in memory. Use `shards` to read one shard at a time."""
        embeddings, first = np.empty((len(self), *self.space.item_shape), dtype=np.float32), 0
        for shard, rows in self.rows.items():
            embeddings[first : first + rows] = self.shard_embeddings(shard)
            first += rows
        return embeddings

    @property
    def paths(self) -> tuple[str, ...]:
        """The path of every image, relative to `images`, in the order of `embeddings`."""
        return tuple(path for shard in self.shards() for path in shard.items["image_path"].to_pylist())

    def queries(self) -> Embeddings | None:
        """Return the real query embeddings in the gallery, float32 [Q, D], or None if there are none."""
        path = self.root / f"{QUERIES}.npy"
        way_out = f"remove {path.with_suffix('.json')}"
        if not path.with_suffix(".json").exists():
            return None
        record = read_record(
            path.with_suffix(".json"), QueriesRecord, raises=GalleryError, missing="", way_out=way_out, sealed=True
        )
        if not path.is_file() or sha256_of_file(path) != record.sha256:
            raise GalleryError(f"{path} is missing or corrupted; {way_out}", path=path)
        return np.asarray(_load(path, (self.space.dim,), way_out))

    def shard_embeddings(self, shard: str) -> Embeddings:
        """Return a shard's embeddings, float32 [rows, *item_shape], memory-mapped.

        Raises GalleryError if they are not those that were written, or if a row does not have unit length.
        """
        path, record = self._layout.embeddings(shard), self._shards[shard]
        if shard not in self._checked:
            self._layout.checked(path, record)
        embeddings: Embeddings = _load(path, self.space.item_shape, EMBED_AGAIN)
        if len(embeddings) != record.rows:
            raise GalleryError(
                f"{path} has {len(embeddings)} rows, its record says {record.rows}; {EMBED_AGAIN}", path=path
            )
        if shard not in self._checked:
            check_length(embeddings, lambda row: f"{path}: row {row}")
            self._checked.add(shard)
        return embeddings


def read_gallery(root: Path | str, *, allow_empty: bool = False) -> Gallery:
    """Open an embedded gallery.

    Raises GalleryError if it is missing or damaged, or if it is empty and `allow_empty` is False.
    """
    root = Path(root)
    gallery = Gallery(root, read_manifest(root), Layout(root).shards())
    if not len(gallery) and not allow_empty:
        raise GalleryError(f"gallery {root}: has no embeddings; run `cirrus embed` until it ends", path=root)
    return gallery


def check_length(embeddings: Embeddings, named: Callable[[int], str]) -> None:
    """Raise GalleryError unless every vector, float32 [rows, D] or [rows, V, D], has length 1.

    named: returns the name of a row, for the message.
    """
    for start in range(0, len(embeddings), _ROWS_AT_ONCE):
        lengths = np.linalg.norm(embeddings[start : start + _ROWS_AT_ONCE], axis=-1)
        wrong = ~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE)
        if wrong.any():
            row = start + int(np.argwhere(wrong)[0][0])
            raise GalleryError(
                f"{named(row)} has length {lengths[wrong][0]:.4g}, expected 1: it is no embedding of a bundle"
            )


def _load(path: Path, row_shape: tuple[int, ...], way_out: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise GalleryError(f"{path} can't be read ({error}); {way_out}", path=path) from None
    if array.ndim != 1 + len(row_shape) or array.shape[1:] != row_shape or array.dtype != np.float32:
        raise GalleryError(
            f"{path} has {array.dtype} {list(array.shape)}, expected float32 rows of {list(row_shape)}; {way_out}",
            path=path,
        )
    return array
