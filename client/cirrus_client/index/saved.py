"""Build, update, save and open an index: the files of a backend, the images of its rows, and a manifest.

index/
  items.parquet      image_path, relative to the images' root, and the gallery's other columns; one row per image
  vectors.faiss      the vectors; written by the backend `faiss`, other backends have their own files
  index.json         backend, space, counts, agreement, and the sha256 of every other file; written last
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cirrus_client.errors import SearchIndexError
from cirrus_client.files import check_files
from cirrus_client.gallery.store import Gallery, read_gallery
from cirrus_client.index.backend import IndexBackend, Older
from cirrus_client.index.items import Items
from cirrus_client.index.manifest import MANIFEST, IndexManifest, checksums, new_rows, read_manifest, shards_of
from cirrus_client.index.parquet_items import ITEMS, checked_metadata, metadata_columns, read_columns
from cirrus_client.index.protocol import Agreement, BuildOptions, Index, QuerySample
from cirrus_client.names import Writer
from cirrus_client.outputs import of_one_version, replaced_directory
from cirrus_client.plugins import find_subclass
from cirrus_client.records import write_sealed

BACKENDS = {
    "faiss": "cirrus_client.index.faiss_backend:FaissBackend",
    "milvus": "cirrus_client.index.milvus.backend:MilvusBackend",
}
BACKEND_GROUP = "cirrus.indexes"
_WAY_OUT = "build it again with `cirrus index`"


@dataclass(frozen=True)
class SavedIndex:
    """An opened index and the images of its rows. Threads may share it."""

    manifest: IndexManifest
    index: Index
    items: Items


def build_index(
    gallery: Gallery | Path | str,
    out: Path | str,
    *,
    options: BuildOptions | None = None,
    backend: str = "faiss",
    metadata: pa.Table | None = None,
    images: str | None = None,
) -> IndexManifest:
    """Build an index of an embedded gallery and save it. The gallery is read one shard at a time.

    gallery: as `read_gallery` returns it, or its folder. backend: a name in `BACKENDS` or in the entry-point group
    `cirrus.indexes`, or `module:Class`. metadata: columns to store with the images, joined by its column `image_path`.
    images: the root of the images, a folder or a URL prefix; None keeps the one that the gallery was embedded from. An
    older index at `out` is replaced when the new one is complete.

    Raises SearchIndexError if `out` is not an index or the options do not fit, PluginError for an unknown backend, and
    GalleryError for a damaged gallery.
    """
    gallery = _opened(gallery)
    options = options or BuildOptions()
    builder = _backend(backend)
    out = Path(out)
    _check_place(builder, backend, options, out)
    metadata = None if metadata is None else checked_metadata(metadata, gallery)
    with replaced_directory(out, Writer.INDEX) as root:
        agreement = builder.write(gallery, root, options, metadata, out=out)
        columns = () if metadata is None else metadata_columns(metadata)
        manifest = _finish(root, gallery, backend, options, agreement, columns, images or gallery.images)
    builder.settle(out, options)
    return manifest


def update_index(
    gallery: Gallery | Path | str,
    out: Path | str,
    *,
    queries: QuerySample | None = None,
    metadata: pa.Table | None = None,
    images: str | None = None,
    backend: str | None = None,
) -> IndexManifest:
    """Bring a saved index up to date with its gallery: images that are new, were changed, or are gone.

    What the backend can use of unchanged images is taken from the index, which is replaced when the new one is
    complete. Its kind and storage stay. gallery: see `build_index`. queries: to tune and measure it on, as in
    `BuildOptions`. metadata, images: see `build_index`; None keeps the index's own. backend: see `open_index`.

    Raises SearchIndexError if `out` is no index, is damaged, or has another space than the gallery; GalleryError for a
    damaged gallery.
    """
    gallery, out = _opened(gallery), Path(out)
    with replaced_directory(out, Writer.INDEX) as root:
        old = read_manifest(out)
        _check_named(out, old, backend)
        if gallery.space.fingerprint != old.space.fingerprint:
            differing = gallery.space.differences_in_words(old.space)
            raise SearchIndexError(
                f"index {out}: the gallery {gallery.root} has another space, which differs in {differing}: build "
                "another index of it",
                path=out,
                field="space",
            )
        _check_files(out, old)
        metadata = None if metadata is None else checked_metadata(metadata, gallery)
        options = BuildOptions(old.kind, old.storage, queries)
        older, builder = Older(out, new_rows(old, gallery)), _backend(old.backend)
        if metadata is None and old.metadata and not builder.remote:
            metadata = read_columns(out / ITEMS, old.metadata)
        agreement = builder.rewrite(gallery, root, options, metadata, older)
        columns = old.metadata if metadata is None else metadata_columns(metadata)
        return _finish(root, gallery, old.backend, options, agreement, columns, images or old.images)


def open_index(root: Path | str, *, images: str | None = None, backend: str | None = None) -> SavedIndex:
    """Open a saved index. If it is replaced meanwhile, the old or the new version is opened, never parts of both.

    images: the root of the images, a folder or a URL prefix; None takes the one stored in the index. backend: the
    `module:Class` that it was built with. It must be given, because the index itself may not name code to run; None
    allows backends by name. Raises SearchIndexError if the index is missing, incomplete or corrupted, PluginError for
    an unknown backend.
    """
    root = Path(root)
    return of_one_version(root, lambda: _read_whole(root, images, backend))


def check_index(root: Path) -> None:
    """Raise SearchIndexError if a file of an index is not the one that was written."""
    _check_files(root, read_manifest(root))


def _check_files(root: Path, manifest: IndexManifest) -> None:
    check_files(root, manifest.files, what="index", raises=SearchIndexError, way_out=_WAY_OUT)


def _read_whole(root: Path, images: str | None, backend: str | None) -> SavedIndex:
    manifest = read_manifest(root)
    _check_named(root, manifest, backend)
    _check_files(root, manifest)
    index, items = _backend(manifest.backend).read(root, manifest, images or manifest.images)
    return SavedIndex(manifest, index, items)


def _opened(gallery: Gallery | Path | str) -> Gallery:
    return gallery if isinstance(gallery, Gallery) else read_gallery(gallery)


def _check_named(root: Path, manifest: IndexManifest, backend: str | None) -> None:
    """Raise SearchIndexError if an index names code that the user did not name, or the user names another backend."""
    if ":" not in manifest.backend and backend not in (None, manifest.backend):
        raise SearchIndexError(
            f"index {root}: was built by {manifest.backend} and not by {backend}: leave out --backend",
            path=root,
            field="backend",
        )
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
    metadata: tuple[str, ...],
    images: str,
) -> IndexManifest:
    """Write the manifest beside the files of a backend."""
    manifest = IndexManifest(
        backend=backend,
        space=gallery.space,
        count=len(gallery),
        images=images,
        kind=options.kind,
        storage=options.storage,
        agreement=agreement,
        shards=shards_of(gallery),
        metadata=metadata,
        files=checksums(root),
    )
    write_sealed(root / MANIFEST, manifest)
    return manifest


def _check_place(builder: IndexBackend, backend: str, options: BuildOptions, out: Path) -> None:
    if not builder.remote and (options.uri is not None or options.collection is not None):
        raise SearchIndexError(
            f"the backend {backend} keeps an index in its folder and takes no uri and no collection: leave them out, "
            "or name another backend, like milvus"
        )
    if options.uri is not None and Path(options.uri).resolve().is_relative_to(out.resolve()):
        raise SearchIndexError(
            f"{options.uri} lies in {out}, which is replaced by the next build: put it beside that folder", path=out
        )


def _backend(name: str) -> IndexBackend:
    return find_subclass(IndexBackend, name, what="index backend", table=BACKENDS, group=BACKEND_GROUP)()
