"""The files of a gallery on disk.

    gallery/
      gallery.json                           the space and the images' root, written first
      shards/shard_<id>.json                 a shard: its number of rows, the sha256 of its files; written last
      img_emb/img_emb_<id>.npy               float32 [rows, D], or [rows, V, D] where an image has V vectors
      metadata/metadata_<id>.parquet         image_path, size, mtime_ns, etag, sha256, and the source's own columns: one
                                             row per embedding, in the same order
      rejected/rejected_<id>.parquet         image_path, size, mtime_ns, etag, reason, sha256
      parts/part_<id>.json                   a part of the source, like a tar, all of whose images were dealt with
      queries.npy, queries.json              real query embeddings, float32 [Q, D], to tune an approximate index on
      bundle/                                the bundle of a new head, if it was exported for this gallery
      .lock                                  held by the job that writes

The layout is clip-retrieval's: embedding-reader and autofaiss pair the files of `img_emb` and `metadata` by their
sorted names. The id of a shard is a hash of the files in it, so every process that embeds the same files gives it the
same id. A shard is there once its record is. A record may name an older shard that it replaces, so that the old rows
are there until the new ones are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import GalleryError
from cirrus_client.files import sha256_of_file
from cirrus_client.gallery.source import ImageFile
from cirrus_client.gallery.stream import Rejected
from cirrus_client.names import FolderRecord
from cirrus_client.parquet import read_parquet
from cirrus_client.records import Record, read_record

MANIFEST = FolderRecord.GALLERY
BUNDLE = "bundle"
LOCK = ".lock"
QUERIES = "queries"
EMBED_AGAIN = "remove this shard's record in `shards`, and `cirrus embed` embeds its images again"
FILE_SCHEMA = pa.schema(
    {"image_path": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64(), "etag": pa.string()},
)
ACCEPTED_SCHEMA = FILE_SCHEMA.append(pa.field("sha256", pa.string()))
REJECTED_SCHEMA = FILE_SCHEMA.append(pa.field("reason", pa.string())).append(pa.field("sha256", pa.string()))


class GalleryManifest(Record):
    """`gallery.json`: where the images are, and the space of their embeddings."""

    format: Literal[3] = 3
    images: str
    space: SpaceSpec


class ShardRecord(Record):
    """`shards/shard_<id>.json`.

    replaces: the id of an older shard, which counts no longer. part: of the source; empty where it has none. files:
    sha256 by path.
    """

    rows: int = Field(ge=0)
    rejected: int = Field(ge=0)
    replaces: str | None = None
    part: str = ""
    files: dict[str, str]


class PartRecord(Record):
    """`parts/part_<id>.json`: the part of the source as it was when all of its images had been dealt with.

    shards: the ids of all shards of the part. missing: number of images in them that the part no longer has.
    """

    path: str
    size: int
    mtime_ns: int
    etag: str
    shards: tuple[str, ...]
    missing: int = Field(ge=0)


class QueriesRecord(Record):
    """`queries.json`: the sha256 of `queries.npy`."""

    sha256: str


class Layout:
    """The paths below a gallery's root, and the records of its shards."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def record(self, shard: str) -> Path:
        return self.root / "shards" / f"shard_{shard}.json"

    def embeddings(self, shard: str) -> Path:
        return self.root / "img_emb" / f"img_emb_{shard}.npy"

    def metadata(self, shard: str) -> Path:
        return self.root / "metadata" / f"metadata_{shard}.parquet"

    def rejected(self, shard: str) -> Path:
        return self.root / "rejected" / f"rejected_{shard}.parquet"

    def part(self, path: str) -> Path:
        return self.root / "parts" / f"part_{hashlib.sha256(path.encode()).hexdigest()[:16]}.json"

    def files(self, shard: str) -> tuple[Path, Path, Path]:
        """Return the files that a shard's record lists."""
        return self.embeddings(shard), self.rejected(shard), self.metadata(shard)

    def folders(self) -> tuple[Path, ...]:
        """Return the folders of records and files."""
        return tuple(path.parent for path in (self.record(""), *self.files("")))

    def all_ids(self) -> set[str]:
        """Return the ids of all shards of which a record or a file is there."""
        paths = (path for folder in self.folders() for path in folder.glob("[!.]*_*"))
        return {path.stem.rpartition("_")[2] for path in paths}

    def shards(self) -> dict[str, ShardRecord]:
        """Return the shards that count, by their ids, sorted. Raises GalleryError for a damaged record."""
        while True:
            try:
                return self._shards()
            except GalleryError as error:
                if error.path is None or os.path.lexists(error.path):
                    raise  # a record that is gone has been replaced by a newer one meanwhile

    def _shards(self) -> dict[str, ShardRecord]:
        paths = sorted(self.record("").parent.glob("shard_*.json"))
        records = {path.stem.removeprefix("shard_"): self._read(path) for path in paths}
        replaced = {record.replaces for record in records.values()}
        return {shard: record for shard, record in records.items() if shard not in replaced}

    def checked(self, path: Path, record: ShardRecord) -> Path:
        """Return the path of a shard's file. Raises GalleryError if its content is not what the record says."""
        expected = record.files.get(str(path.relative_to(self.root)))
        if not path.is_file():
            raise GalleryError(
                f"{path} is missing; open the gallery again if a job updates it, else {EMBED_AGAIN}", path=path
            )
        if sha256_of_file(path) != expected:
            raise GalleryError(f"{path} is corrupted: its sha256 is not that in its record; {EMBED_AGAIN}", path=path)
        return path

    def accepted_table(self, shard: str, record: ShardRecord) -> pa.Table:
        """Return `metadata_<id>.parquet`. Raises GalleryError if it is damaged."""
        return self._table(self.metadata(shard), record, ACCEPTED_SCHEMA, record.rows)

    def rejected_table(self, shard: str, record: ShardRecord) -> pa.Table:
        """Return `rejected_<id>.parquet`. Raises GalleryError if it is damaged."""
        return self._table(self.rejected(shard), record, REJECTED_SCHEMA, record.rejected)

    def _table(self, path: Path, record: ShardRecord, schema: pa.Schema, rows: int) -> pa.Table:
        table = read_parquet(self.checked(path, record), schema=schema, raises=GalleryError, way_out=EMBED_AGAIN)
        if table.num_rows != rows:
            raise GalleryError(f"{path} has {table.num_rows} rows, its record says {rows}; {EMBED_AGAIN}", path=path)
        return table

    def _read(self, path: Path) -> ShardRecord:
        return read_record(
            path,
            ShardRecord,
            raises=GalleryError,
            missing=f"{path} is gone; open the gallery again",
            way_out="remove it, and `cirrus embed` embeds its images again",
            sealed=True,
        )


def shard_id(accepted: Iterable[ImageFile], rejected: Iterable[Rejected]) -> str:
    """Return the id of a shard of these files: a hash of their paths and states, and of rejected bytes."""
    digest = hashlib.sha256()
    for file in accepted:
        digest.update(_state(file))
    for item in rejected:
        digest.update(_state(item.file) + f"{item.sha256}\0".encode())
    return digest.hexdigest()[:16]


def _state(file: ImageFile) -> bytes:
    return f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.etag}\0".encode()


def read_manifest(root: Path) -> GalleryManifest:
    """Read `gallery.json`. Raises GalleryError if it is missing or invalid."""
    return read_record(
        root / MANIFEST,
        GalleryManifest,
        raises=GalleryError,
        way_out="embed into another folder, or restore the file from a copy",
        sealed=True,
    )


def check_free(root: Path) -> None:
    """Raise GalleryError if a folder has other content than a gallery, a new head's bundle and hidden files."""
    strangers = [path for path in root.glob("[!.]*") if path.name != BUNDLE]
    if root.is_file() or (strangers and not (root / MANIFEST).exists()):
        raise GalleryError(f"{root} is not empty and not a gallery; embed into another folder", path=root)
