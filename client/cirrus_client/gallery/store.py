"""Write and read a gallery on disk: shards of embeddings, each with the list of its image files.

    gallery/
      img_emb/img_emb_<shard>.npy            float32 [rows, D], or [rows, V, D] where an image has V vectors
      metadata/metadata_<shard>.parquet      image_path, size, mtime_ns: one row per embedding, in the same order
      rejected/rejected_<shard>.parquet      image_path, size, mtime_ns, reason
      queries.npy                            real query embeddings, float32 [Q, D], to tune an approximate index on
      gallery.json                           the space and the images' root, written first
      bundle/                                the bundle of a new head, if it was exported for this gallery

The layout is clip-retrieval's: embedding-reader and autofaiss pair the files of `img_emb` and `metadata` by their
sorted names. The id of a shard is a hash of its files, so every process that plans the same files gives it the same id.
The metadata file is written last: a shard is complete once it has one.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import GalleryError, SpaceMismatch
from cirrus_client.files import atomic_path, write_atomically, write_model
from cirrus_client.gallery.source import ImageFile, Rejected
from cirrus_client.records import Record, read_record

MANIFEST = "gallery.json"
BUNDLE = "bundle"
_QUERIES = "queries.npy"
_EMBED_AGAIN = "remove this shard's files, and `cirrus embed` embeds them again"


class GalleryManifest(Record):
    """`gallery.json`: where the images are, and the space of their embeddings."""

    images: str
    space: SpaceSpec


@dataclass(frozen=True)
class Shard:
    """Image files that are embedded and committed together."""

    id: str
    files: tuple[ImageFile, ...]

    @staticmethod
    def of(files: Sequence[ImageFile]) -> Shard:
        """Return a shard of these files. Its id is a hash of their paths, sizes and times."""
        digest = hashlib.sha256()
        for file in files:
            digest.update(os.fsencode(file.path) + f"\0{file.size}\0{file.mtime_ns}\0".encode())
        return Shard(digest.hexdigest()[:16], tuple(files))


@dataclass(frozen=True)
class Plan:
    """The work that a gallery needs to match a list of files.

    done: number of files in complete, current shards. stale: ids of shards with changed or removed files; drop them.
    pending: shards to embed, which include the remaining files of stale shards.
    """

    done: int
    stale: tuple[str, ...]
    pending: tuple[Shard, ...]


@dataclass(frozen=True)
class GallerySummary:
    """The content of a gallery after a run.

    embedded: number of images. rejected: files that are not usable images. new: number of files that this run embedded
    or rejected.
    """

    embedded: int
    rejected: tuple[Rejected, ...]
    new: int


class GalleryWriter:
    """Writes the shards of a gallery.

    Threads and processes may write one gallery at the same time. Each commits its own shards. If two commit the same
    shard, both write the same files with the same content.
    """

    def __init__(self, root: Path, manifest: GalleryManifest) -> None:
        self._files = _ShardFiles(root)
        self.manifest = manifest

    @staticmethod
    def open(root: Path | str, *, images: str, space: SpaceSpec) -> GalleryWriter:
        """Create a gallery, or open one to continue it. images: the root of the source, see `Source.root`.

        Raises SpaceMismatch if it was embedded in another space. Raises GalleryError if it is a gallery of other
        images, if it is damaged, or if the folder has other content.
        """
        root, manifest = Path(root), GalleryManifest(images=images, space=space)
        if (root / MANIFEST).exists():
            _check_same(root, read_manifest(root), manifest)
        check_free(root)
        write_model(root / MANIFEST, manifest)
        return GalleryWriter(root, manifest)

    def plan(self, files: Sequence[ImageFile], shard_size: int) -> Plan:
        """Return the work that is left until the gallery has exactly these files. Nothing is changed on disk.

        files: sorted by path. shard_size: files per new shard. Raises GalleryError for damaged shards.
        """
        present = set(files)
        stale = []
        done: set[ImageFile] = set()
        for shard in self._files.ids():
            dealt_with = self._files.dealt_with(shard)
            if present.issuperset(dealt_with):
                done.update(dealt_with)
            else:
                stale.append(shard)
        rest = [file for file in files if file not in done]
        pending = tuple(Shard.of(rest[start : start + shard_size]) for start in range(0, len(rest), shard_size))
        return Plan(len(done), tuple(stale), pending)

    def commit(
        self, shard: Shard, embeddings: Embeddings, accepted: Sequence[ImageFile], rejected: Sequence[Rejected]
    ) -> None:
        """Write a shard, its metadata last.

        embeddings: float32 [rows, *item_shape], one row per accepted file, in order. Raises GalleryError if the shape
        is wrong, or if accepted and rejected files are not as many as the shard has.
        """
        expected = (len(accepted), *self.manifest.space.item_shape)
        if embeddings.shape != expected or len(accepted) + len(rejected) != len(shard.files):
            raise GalleryError(
                f"shard {shard.id} of {len(shard.files)} files: {len(accepted)} accepted and {len(rejected)} rejected "
                f"files with embeddings of shape {list(embeddings.shape)}, expected {list(expected)}"
            )
        write_atomically(self._files.embeddings(shard.id), _npy(embeddings))
        reasons = pa.array([item.reason for item in rejected], pa.string())
        _write_table(
            _table(item.file for item in rejected).append_column("reason", reasons), self._files.rejected(shard.id)
        )
        _write_table(_table(accepted), self._files.metadata(shard.id))

    def drop(self, shard: str) -> None:
        """Remove the files of a shard, its metadata first."""
        for path in (self._files.metadata(shard), self._files.rejected(shard), self._files.embeddings(shard)):
            path.unlink(missing_ok=True)

    def keep_queries(self, queries: Embeddings) -> None:
        """Store real query embeddings, float32 [Q, D], to tune an approximate index on."""
        write_atomically(self._files.root / _QUERIES, _npy(queries))

    def summary(self, *, new: int) -> GallerySummary:
        """Return the content of the gallery. new: number of files that the caller embedded or rejected."""
        rejected = [
            Rejected(_file(row), row["reason"])
            for shard in self._files.ids()
            for row in _read_table(self._files.rejected(shard)).to_pylist()
        ]
        return GallerySummary(len(read_gallery(self._files.root, allow_empty=True)), tuple(rejected), new)


@dataclass(frozen=True)
class GalleryShard:
    """A complete shard. embeddings: float32 [rows, *item_shape], memory-mapped. items: row i is the image of row i."""

    id: str
    embeddings: Embeddings
    items: pa.Table


class Gallery:
    """Reads the shards of a gallery that were complete when it was opened.

    Threads may share a gallery. It can be read while other processes write it.
    """

    def __init__(self, root: Path, manifest: GalleryManifest, rows: dict[str, int]) -> None:
        self.root = root
        self.space = manifest.space
        self.images = manifest.images
        self._rows = rows
        self._files = _ShardFiles(root)

    def __len__(self) -> int:
        """Number of embedded images."""
        return sum(self._rows.values())

    @property
    def rows(self) -> Mapping[str, int]:
        """Number of images of every shard, by its id, in the order of `shards`."""
        return self._rows

    def shards(self) -> Iterator[GalleryShard]:
        """Yield the shards in the order of their ids. Raises GalleryError for a damaged shard."""
        for shard in self._rows:
            yield GalleryShard(shard, self.shard_embeddings(shard), _read_table(self._files.metadata(shard)))

    @property
    def embeddings(self) -> Embeddings:
        """All embeddings, float32 [N, *item_shape], in memory. Use `shards` to read one shard at a time."""
        return np.concatenate([np.asarray(shard.embeddings, dtype=np.float32) for shard in self.shards()])

    @property
    def paths(self) -> tuple[str, ...]:
        """The path of every image, relative to `images`, in the order of `embeddings`."""
        return tuple(path for shard in self.shards() for path in shard.items["image_path"].to_pylist())

    def queries(self) -> Embeddings | None:
        """Return the real query embeddings in the gallery, float32 [Q, D], or None if there are none."""
        path = self.root / _QUERIES
        return np.asarray(_load(path, f"remove {path}")) if path.exists() else None

    def shard_embeddings(self, shard: str) -> Embeddings:
        """Return a shard's embeddings, float32 [rows, *item_shape], memory-mapped. Raises GalleryError."""
        path = self._files.embeddings(shard)
        embeddings: Embeddings = _load(path, _EMBED_AGAIN)
        expected = (self._rows[shard], *self.space.item_shape)
        if embeddings.shape != expected or embeddings.dtype != np.float32:
            raise GalleryError(
                f"{path}: has {embeddings.dtype} {list(embeddings.shape)}, its metadata and the space say float32 "
                f"{list(expected)}; {_EMBED_AGAIN}",
                path=path,
            )
        return embeddings


def read_gallery(root: Path | str, *, allow_empty: bool = False) -> Gallery:
    """Open an embedded gallery.

    Raises GalleryError if it is missing or damaged, or if it is empty and `allow_empty` is False.
    """
    root = Path(root)
    manifest = read_manifest(root)
    files = _ShardFiles(root)
    gallery = Gallery(root, manifest, {shard: _rows(files.metadata(shard)) for shard in files.ids()})
    if not len(gallery) and not allow_empty:
        raise GalleryError(f"gallery {root}: has no embeddings; run `cirrus embed` until it ends", path=root)
    return gallery


def read_manifest(root: Path) -> GalleryManifest:
    """Read `gallery.json`. Raises GalleryError if it is missing or invalid."""
    return read_record(
        root / MANIFEST,
        GalleryManifest,
        raises=GalleryError,
        missing=f"{root} is not a gallery: it has no {MANIFEST}; make one with `cirrus embed`",
        way_out="embed into another folder, or restore the file from a copy",
    )


def check_free(root: Path) -> None:
    """Raise GalleryError if a folder has other content than a gallery, a new head's bundle and hidden files."""
    strangers = [path for path in root.glob("[!.]*") if path.name != BUNDLE]
    if root.is_file() or (strangers and not (root / MANIFEST).exists()):
        raise GalleryError(f"{root} is not empty and not a gallery; embed into another folder", path=root)


class _ShardFiles:
    """The paths of a gallery's shards."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def embeddings(self, shard: str) -> Path:
        return self.root / "img_emb" / f"img_emb_{shard}.npy"

    def metadata(self, shard: str) -> Path:
        return self.root / "metadata" / f"metadata_{shard}.parquet"

    def rejected(self, shard: str) -> Path:
        return self.root / "rejected" / f"rejected_{shard}.parquet"

    def ids(self) -> list[str]:
        """Return the ids of complete shards, sorted."""
        return sorted(path.stem.removeprefix("metadata_") for path in self.root.glob("metadata/metadata_*.parquet"))

    def dealt_with(self, shard: str) -> list[ImageFile]:
        """Return all files of a complete shard, rejected ones included."""
        tables = [_read_table(self.metadata(shard)), _read_table(self.rejected(shard))]
        return [_file(row) for table in tables for row in table.to_pylist()]


def _check_same(root: Path, found: GalleryManifest, given: GalleryManifest) -> None:
    if found.space.fingerprint != given.space.fingerprint:
        raise SpaceMismatch(
            f"gallery {root} was embedded in space {found.space.fingerprint}, the encoder's space is "
            f"{given.space.fingerprint}; embed into another folder",
            components=found.space.differences(given.space),
        )
    if found.images != given.images:
        raise GalleryError(
            f"gallery {root} is of {found.images}, not of {given.images}; embed into another folder", path=root
        )


def _npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _load(path: Path, way_out: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise GalleryError(f"{path} can't be read ({error}); {way_out}", path=path) from None
    return array


def _table(files: Iterable[ImageFile]) -> pa.Table:
    listed = list(files)
    return pa.table(
        {
            "image_path": pa.array([file.path for file in listed], pa.string()),
            "size": pa.array([file.size for file in listed], pa.int64()),
            "mtime_ns": pa.array([file.mtime_ns for file in listed], pa.int64()),
        }
    )


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise GalleryError(f"{path} can't be read ({error}); {_EMBED_AGAIN}", path=path) from None


def _rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise GalleryError(f"{path} can't be read ({error}); {_EMBED_AGAIN}", path=path) from None


def _file(row: dict[str, Any]) -> ImageFile:
    return ImageFile(row["image_path"], row["size"], row["mtime_ns"])
