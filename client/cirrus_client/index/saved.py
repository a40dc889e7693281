"""Build, save and open an index: the files of a backend, the images of its rows, and a manifest.

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

import pyarrow as pa

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.files import check_files, sha256_of_file
from cirrus_client.gallery.store import Gallery
from cirrus_client.index.items import ITEMS, Items, write_items
from cirrus_client.index.protocol import Agreement, BuildOptions, Index, IndexBackend, SearchKind, Storage
from cirrus_client.names import Writer
from cirrus_client.outputs import of_one_version, replaced_directory
from cirrus_client.plugins import find_subclass
from cirrus_client.records import Record, read_record, write_sealed

MANIFEST = "index.json"
BACKENDS = {"faiss": "cirrus_client.index.faiss_backend:FaissBackend"}
BACKEND_GROUP = "cirrus.indexes"
_WAY_OUT = "build it again with `cirrus index`"


class IndexManifest(Record):
    """The contents of `index.json`. images: the root of the image paths when the index was built."""

    format: Literal[3] = 3
    backend: str
    space: SpaceSpec
    count: int
    images: str
    kind: SearchKind
    storage: Storage
    agreement: Agreement | None
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
    out, options = Path(out), options or BuildOptions()
    builder = _backend(backend)
    with replaced_directory(out, Writer.INDEX) as root:
        agreement = builder.build(gallery, root, options)
        write_items(gallery, root / ITEMS, metadata, vectors=_vectors(_checksums(root)))
        manifest = IndexManifest(
            backend=backend,
            space=gallery.space,
            count=len(gallery),
            images=images or gallery.images,
            kind=options.kind,
            storage=options.storage,
            agreement=agreement,
            files=_checksums(root),
        )
        write_sealed(root / MANIFEST, manifest)
    return manifest


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
    if ":" in manifest.backend and manifest.backend != backend:
        raise SearchIndexError(
            f"index {root}: was built by {manifest.backend}, which is code and no backend's name; if you trust it, "
            "open the index with the same --backend",
            path=root,
            field="backend",
        )
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


def _backend(name: str) -> IndexBackend:
    return find_subclass(IndexBackend, name, what="index backend", table=BACKENDS, group=BACKEND_GROUP)()


def _checksums(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256_of_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


def _vectors(files: Mapping[str, str]) -> str:
    """Return one checksum of the backend's files, by which `items.parquet` names the vectors that it belongs to."""
    return hashlib.sha256(
        json.dumps({n: f for n, f in files.items() if n != ITEMS}, sort_keys=True).encode()
    ).hexdigest()
