"""Build, update, save and open an index: the files of a backend, the images of its rows, and a manifest.

index/
  items.parquet      image_path, relative to the images' root, and the gallery's other columns; one row per image
  vectors.faiss      the vectors; written by the backend `faiss`, other backends have their own files
  index.json         backend, space, counts, agreement, and the sha256 of every other file; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.files import check_files, sha256_of_file
from cirrus_client.gallery.store import Gallery
from cirrus_client.index.items import ITEMS, Items, metadata_columns, read_columns, write_items
from cirrus_client.index.protocol import (
    Agreement,
    BuildOptions,
    Index,
    IndexBackend,
    Older,
    QuerySample,
    SearchKind,
    Storage,
)
from cirrus_client.names import Writer
from cirrus_client.outputs import of_one_version, replaced_directory
from cirrus_client.plugins import find_subclass
from cirrus_client.records import Record, read_record, write_sealed

MANIFEST = "index.json"
BACKENDS = {"faiss": "cirrus_client.index.faiss_backend:FaissBackend"}
BACKEND_GROUP = "cirrus.indexes"
_WAY_OUT = "build it again with `cirrus index`"


class IndexedShard(Record):
    """A shard of the gallery, whose images are the next `rows` of the index. sha256: of its embeddings."""

    id: str
    rows: int
    sha256: str


class IndexManifest(Record):
    """The contents of `index.json`.

    images: the root of the image paths when the index was built. shards: those of the gallery, in the order of the
    rows; none in an index of an older version. metadata: the columns that were given when the index was built.
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


@dataclass(frozen=True)
class SavedIndex:
    """An opened index and the images of its rows. Threads may share it."""

    manifest: IndexManifest
    index: Index
    items: Items


def build_index(
    gallery: Gallery,
    out: Path | str,
    *,
    options: BuildOptions | None = None,
    backend: str = "faiss",
    metadata: pa.Table | None = None,
    images: str | None = None,
) -> IndexManifest:
    """Build an index of an embedded gallery and save it. The gallery is read one shard at a time.

    backend: a name in `BACKENDS` or in the entry-point group `cirrus.indexes`, or `module:Class`. metadata: columns to
    store with the images, joined by its column `image_path`. images: the root of the images, a folder or a URL prefix;
    None keeps the one that the gallery was embedded from. An older index at `out` is replaced when the new one is
    complete.

    Raises SearchIndexError if `out` is not an index or the options do not fit, PluginError for an unknown backend, and
    GalleryError for a damaged gallery.
    """
    options = options or BuildOptions()
    builder = _backend(backend)
    with replaced_directory(Path(out), Writer.INDEX) as root:
        agreement = builder.build(gallery, root, options)
        return _finish(root, gallery, backend, options, agreement, metadata, images or gallery.images)


def update_index(
    gallery: Gallery,
    out: Path | str,
    *,
    queries: QuerySample | None = None,
    metadata: pa.Table | None = None,
    images: str | None = None,
    backend: str | None = None,
) -> IndexManifest:
    """Bring a saved index up to date with its gallery: images that are new, were changed, or are gone.

    What the backend can use of unchanged images is taken from the index, which is replaced when the new one is
    complete. Its kind and storage stay. queries: to tune and measure it on, as in `BuildOptions`. metadata, images: see
    `build_index`; None keeps the index's own. backend: see `open_index`.

    Raises SearchIndexError if `out` is no index, is damaged, or has another space than the gallery; GalleryError for a
    damaged gallery.
    """
    out = Path(out)
    with replaced_directory(out, Writer.INDEX) as root:
        old = read_manifest(out)
        _check_named(out, old, backend)
        if gallery.space.fingerprint != old.space.fingerprint:
            differing = ", ".join(gallery.space.differences(old.space)) or "width or similarity"
            raise SearchIndexError(
                f"index {out}: the gallery {gallery.root} has another space, which differs in {differing}: build "
                "another index of it",
                path=out,
                field="space",
            )
        check_files(out, old.files, what="index", raises=SearchIndexError, way_out=_WAY_OUT)
        options = BuildOptions(old.kind, old.storage, queries)
        agreement = _backend(old.backend).update(gallery, root, options, Older(out, _new_rows(old, gallery)))
        if metadata is None and old.metadata:
            metadata = read_columns(out / ITEMS, old.metadata)
        return _finish(root, gallery, old.backend, options, agreement, metadata, images or old.images)


def open_index(root: Path | str, *, images: str | None = None, backend: str | None = None) -> SavedIndex:
    """Open a saved index. If it is replaced meanwhile, the old or the new version is opened, never parts of both.

    images: the root of the images, a folder or a URL prefix; None takes the one stored in the index. backend: the
    `module:Class` that it was built with. It must be given, because the index itself may not name code to run; None
    allows backends by name. Raises SearchIndexError if the index is missing, incomplete or corrupted, PluginError for
    an unknown backend.
    """
    root = Path(root)
    return of_one_version(root, lambda: _read_whole(root, images, backend))


def read_manifest(root: Path) -> IndexManifest:
    """Read `index.json`. Raises SearchIndexError if it is missing or invalid."""
    return read_record(
        root / MANIFEST,
        IndexManifest,
        raises=SearchIndexError,
        missing=f"{root} is not an index: it has no {MANIFEST}; make one with `cirrus index`",
        way_out=_WAY_OUT,
        sealed=True,
    )


def _read_whole(root: Path, images: str | None, backend: str | None) -> SavedIndex:
    manifest = read_manifest(root)
    _check_named(root, manifest, backend)
    check_files(root, manifest.files, what="index", raises=SearchIndexError, way_out=_WAY_OUT)
    index = _backend(manifest.backend).open(root, manifest.space, manifest.kind, manifest.storage)
    items = Items.read(root / ITEMS, images=images or manifest.images, vectors=_vectors(manifest.files))
    if not len(index) == len(items) == manifest.count:
        raise SearchIndexError(
            f"index {root}: has {len(index)} rows and {len(items)} images, {MANIFEST} says {manifest.count}; "
            f"{_WAY_OUT}",
            path=root,
        )
    return SavedIndex(manifest, index, items)


def _check_named(root: Path, manifest: IndexManifest, backend: str | None) -> None:
    """Raise SearchIndexError if an index names code to run that the user did not name."""
    if ":" in manifest.backend and manifest.backend != backend:
        raise SearchIndexError(
            f"index {root}: was built by {manifest.backend}, which is code and no backend's name; if you trust it, "
            "open the index with the same --backend",
            path=root,
            field="backend",
        )


def _finish(
    root: Path,
    gallery: Gallery,
    backend: str,
    options: BuildOptions,
    agreement: Agreement | None,
    metadata: pa.Table | None,
    images: str,
) -> IndexManifest:
    """Write the images and the manifest beside the files of a backend."""
    write_items(gallery, root / ITEMS, metadata, vectors=_vectors(_checksums(root)))
    manifest = IndexManifest(
        backend=backend,
        space=gallery.space,
        count=len(gallery),
        images=images,
        kind=options.kind,
        storage=options.storage,
        agreement=agreement,
        shards=_shards(gallery),
        metadata=() if metadata is None else metadata_columns(metadata),
        files=_checksums(root),
    )
    write_sealed(root / MANIFEST, manifest)
    return manifest


def _shards(gallery: Gallery) -> tuple[IndexedShard, ...]:
    rows, checksums = gallery.rows, gallery.checksums
    return tuple(IndexedShard(id=shard, rows=rows[shard], sha256=checksums[shard]) for shard in rows)


def _new_rows(old: IndexManifest, gallery: Gallery) -> NDArray[np.int64]:
    """Return the row that each image of an index has in a gallery, or -1, int64 [images]."""
    first, places = 0, {}
    for shard in _shards(gallery):
        places[shard] = first
        first += shard.rows
    rows, first = np.full(old.count, -1, dtype=np.int64), 0
    for shard in old.shards:
        if shard in places:
            rows[first : first + shard.rows] = places[shard] + np.arange(shard.rows)
        first += shard.rows
    return rows


def _backend(name: str) -> IndexBackend:
    return find_subclass(IndexBackend, name, what="index backend", table=BACKENDS, group=BACKEND_GROUP)()


def _checksums(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256_of_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


def _vectors(files: Mapping[str, str]) -> str:
    """Return one checksum of the backend's files, by which `items.parquet` names the vectors that it belongs to."""
    return hashlib.sha256(
        json.dumps({n: f for n, f in files.items() if n != ITEMS}, sort_keys=True).encode()
    ).hexdigest()
