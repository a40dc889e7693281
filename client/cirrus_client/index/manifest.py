"""The manifest of an index, `index.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.files import sha256_of_file
from cirrus_client.gallery.store import Gallery
from cirrus_client.index.parquet_items import ITEMS
from cirrus_client.index.protocol import Agreement, SearchKind, Storage
from cirrus_client.names import FolderRecord
from cirrus_client.records import Record, read_record

MANIFEST = FolderRecord.INDEX


class IndexedShard(Record):
    """A shard of the gallery, whose images are the next `rows` of the index. sha256: of its embeddings."""

    id: str
    rows: int
    sha256: str


class IndexManifest(Record):
    """The contents of `index.json`.

    images, count: the root of the image paths, and their number, when it was built. shards: those of the gallery, in
    the order of the rows; none in an index of an older version. metadata: the columns that were given with it.
    """

    format: Literal[3] = 3
    backend: str
    space: SpaceSpec
    count: int
    images: str
    kind: SearchKind
    storage: Storage
    agreement: Agreement | None
    shards: tuple[IndexedShard, ...] = ()
    metadata: tuple[str, ...] = ()
    files: dict[str, str]


def read_manifest(root: Path) -> IndexManifest:
    """Read `index.json`. Raises SearchIndexError if it is missing or invalid."""
    return read_record(
        root / MANIFEST,
        IndexManifest,
        raises=SearchIndexError,
        way_out="build it again with `cirrus index`",
        sealed=True,
    )


def shards_of(gallery: Gallery) -> tuple[IndexedShard, ...]:
    """Return the shards of a gallery in their order."""
    rows, sums = gallery.rows, gallery.checksums
    return tuple(IndexedShard(id=shard, rows=rows[shard], sha256=sums[shard]) for shard in rows)


def new_rows(old: IndexManifest, gallery: Gallery) -> NDArray[np.int64]:
    """Return the row that each image of an index has in a gallery, or -1, int64 [images]."""
    first, places = 0, {}
    for shard in shards_of(gallery):
        places[shard] = first
        first += shard.rows
    rows, first = np.full(old.count, -1, dtype=np.int64), 0
    for shard in old.shards:
        if shard in places:
            rows[first : first + shard.rows] = places[shard] + np.arange(shard.rows)
        first += shard.rows
    return rows


def checksums(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of an index, by its path below the folder."""
    return {str(path.relative_to(root)): sha256_of_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


def checksum_of_vectors(files: Mapping[str, str]) -> str:
    """Return one checksum of the backend's files, by which `items.parquet` names the vectors that it belongs to."""
    return hashlib.sha256(
        json.dumps({n: f for n, f in files.items() if n != ITEMS}, sort_keys=True).encode()
    ).hexdigest()
