"""The index backend `milvus`. Vectors, paths and metadata are in a collection; the index's folder says where it is."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import CirrusError, SearchIndexError, SpaceMismatch
from cirrus_client.files import temporary_directory
from cirrus_client.gallery.store import Gallery
from cirrus_client.index.backend import IndexBackend, Older
from cirrus_client.index.columns import ColumnSummary, described
from cirrus_client.index.items import Items
from cirrus_client.index.manifest import IndexManifest, read_manifest
from cirrus_client.index.milvus.collection import INDEX, SPACE, Collection, property_of
from cirrus_client.index.milvus.connection import ADDRESS, READ_S, WRITE_S, check_address, connected, is_file, reported
from cirrus_client.index.milvus.fields import Field, fields_of
from cirrus_client.index.milvus.index import MilvusIndex
from cirrus_client.index.milvus.items import MilvusItems
from cirrus_client.index.parquet_items import DIGEST, PATH, write_items
from cirrus_client.index.protocol import Agreement, BuildOptions, Index, SearchKind, Storage
from cirrus_client.index.vectors import GalleryVectors
from cirrus_client.records import Record, read_record, write_sealed

_PLACE = "milvus.json"
_NAME = re.compile(r"[A-Za-z_]\w{0,199}", re.ASCII)
_WAY_OUT = "build the index again with `cirrus index`"


class MilvusPlace(Record):
    """The contents of `milvus.json`: where the collection is, and which field holds which column of the metadata.

    uri: of a server, or the path of a file, relative to the index's folder. summary: of the columns, when it was built.
    index: names the index, from its first build on; "" in one of an older version.
    """

    format: Literal[1] = 1
    index: str = ""
    uri: str
    collection: str
    fields: tuple[Field, ...]
    summary: tuple[ColumnSummary, ...]


class MilvusBackend(IndexBackend):
    """Keeps an index in a collection of Milvus.

    Every build makes a collection of its own, `NAME_<time>_<random>`, to which the alias `NAME` then leads. The one
    before stays for what still searches it, and older ones of the same index are dropped. A name belongs to one index.
    """

    remote = True

    def build(self, gallery: Gallery, root: Path, options: BuildOptions) -> Agreement | None:
        """See `IndexBackend.build`."""
        return self.write(gallery, root, options, None, out=root)

    def open(self, root: Path, space: SpaceSpec, kind: SearchKind, storage: Storage) -> Index:
        """See `IndexBackend.open`."""
        return MilvusIndex(_opened(root, space)[0])

    def write(
        self, gallery: Gallery, root: Path, options: BuildOptions, metadata: pa.Table | None, *, out: Path
    ) -> Agreement | None:
        """See `IndexBackend.write`."""
        uri, name = _checked(options)
        client = connected(uri, named=True)
        _refuse_other_space(client, uri, name, gallery.space)
        index = _index_at(out)
        _refuse_other_index(client, uri, name, index, out)
        index = index or secrets.token_hex(16)
        with temporary_directory(root / "items") as temporary:
            file = temporary / "items.parquet"
            write_items(gallery, file, metadata, vectors="")
            columns = pq.read_schema(file).remove_metadata()
            fields = fields_of(pa.schema([one for one in columns if one.name not in (PATH, DIGEST)]))
            fresh = f"{name}_{int(time.time())}_{secrets.token_hex(4)}"
            collection = Collection.created(client, uri, fresh, gallery.space, fields, index=index)
            try:
                _fill(collection, gallery, file)
                summary = described(pq.read_table(file, columns=[field.name for field in fields]))
                kept = os.path.relpath(Path(uri).resolve(), root.resolve()) if is_file(uri) else uri
                place = MilvusPlace(index=index, uri=kept, collection=fresh, fields=fields, summary=tuple(summary))
                write_sealed(root / _PLACE, place)
            except BaseException:
                with suppress(CirrusError), reported(uri):
                    client.drop_collection(fresh, timeout=WRITE_S)
                raise
        return None

    def settle(self, root: Path, options: BuildOptions) -> None:
        """See `IndexBackend.settle`. An alias that leads to a build says that an index had it, which may be open."""
        uri, name = _checked(options)
        client, place = connected(uri, named=True), _place(root)
        last = _switch(client, uri, name, place.collection)
        _drop_older(client, uri, name, index=place.index, keep=(place.collection, last))

    def rewrite(
        self, gallery: Gallery, root: Path, options: BuildOptions, metadata: pa.Table | None, older: Older
    ) -> Agreement | None:
        """See `IndexBackend.rewrite`. The collection itself is changed while it serves: what is gone is removed last.

        Images that were embedded again keep their metadata where none is given. Items that were upserted and are not in
        the gallery are removed, and those of the gallery that were deleted, or are of another file, are there again.
        """
        collection = _opened(older.root, gallery.space)[0]
        index, there = MilvusIndex(collection), dict(collection.digests())
        with temporary_directory(root / "items") as temporary:
            file = temporary / "items.parquet"
            write_items(gallery, file, metadata, vectors="")
            paths, digests = (column.to_pylist() for column in pq.read_table(file, columns=[PATH, DIGEST]).columns)
            wanted = np.ones(len(gallery), dtype=np.bool_)
            if metadata is None:
                same = older.rows[older.rows >= 0]
                wanted[same] = [paths[row] not in there or there[paths[row]] != digests[row] for row in same]
            joined = read_manifest(older.root).metadata if metadata is None else ()
            write = index.refresh if metadata is None else index.upsert
            for items, embeddings in _blocks(gallery, file, wanted):
                write(items.drop_columns([name for name in joined if name in items.column_names]), embeddings)
        index.delete(sorted(there.keys() - set(paths)))
        shutil.copyfile(older.root / _PLACE, root / _PLACE)
        return None

    def read(self, root: Path, manifest: IndexManifest, images: str) -> tuple[Index, Items]:
        """See `IndexBackend.read`. The collection may have changed since, so its items are not counted."""
        collection, place = _opened(root, manifest.space)
        return MilvusIndex(collection), MilvusItems(collection, images=images, summary=place.summary)


def _checked(options: BuildOptions) -> tuple[str, str]:
    """Return the address and the name of the collection. Raises SearchIndexError for options that do not fit."""
    if options.kind is not SearchKind.EXACT or options.storage is not Storage.FLOAT32:
        raise SearchIndexError(
            f"the backend milvus searches exactly in float32, not {options.kind} in {options.storage}: leave out "
            "--kind and --storage"
        )
    if options.uri is None or options.collection is None:
        raise SearchIndexError(
            "the backend milvus needs an address and the name of a collection: --uri, like http://localhost:19530 or "
            "build/milvus.db, and --collection"
        )
    check_address(options.uri)
    if not _NAME.fullmatch(options.collection):
        raise SearchIndexError(
            f"'{options.collection}' can't be the name of a collection: take letters, digits and _, up to 200, the "
            "first no digit"
        )
    return options.uri, options.collection


def _refuse_other_space(client: Any, uri: str, name: str, space: SpaceSpec) -> None:
    """Raise SearchIndexError or SpaceMismatch unless a name is free or leads to a collection of this space."""
    found = property_of(client, uri, name, SPACE)
    if found == "" or (found is not None and _target(client, uri, name) is None):
        raise SearchIndexError(
            f"Milvus at {uri} has a collection {name} that `cirrus index` did not make: name another with --collection"
        )
    if found not in (None, space.fingerprint):
        raise SpaceMismatch(
            f"the collection {name} at {uri} has vectors of space {found}, the gallery's space is {space.fingerprint}: "
            "name another with --collection"
        )


def _index_at(out: Path) -> str | None:
    """Return the name of the index in a folder, or None if there is none."""
    try:
        return _place(out).index
    except SearchIndexError:
        return None


def _refuse_other_index(client: Any, uri: str, name: str, index: str | None, out: Path) -> None:
    """Raise SearchIndexError if a collection is another index's, whose answers a build would take away."""
    if property_of(client, uri, name, INDEX) not in (None, index):
        raise SearchIndexError(
            f"the collection {name} at {uri} is of another index than the one at {out}: give --out that one's folder, "
            "or name another collection with --collection",
            path=out,
        )


def _fill(collection: Collection, gallery: Gallery, file: Path) -> None:
    """Write the items of a gallery. file: their paths and metadata, in the order of the gallery."""
    space, first = gallery.space, 0
    for items, embeddings in _blocks(gallery, file, np.ones(len(gallery), dtype=np.bool_)):
        rows = np.arange(first, first + len(embeddings))
        collection.put(rows, items, embeddings.reshape(-1, space.vectors, space.dim), replace=False)
        first += len(embeddings)
    collection.flush()


def _blocks(gallery: Gallery, file: Path, wanted: NDArray[np.bool_]) -> Iterator[tuple[pa.Table, Embeddings]]:
    """Yield rows of `file` with their embeddings, float32 [n, *item_shape], in the order of the gallery.

    wanted: which images, bool [N].
    """
    items, first = pq.read_table(file, memory_map=True), 0
    for vectors in GalleryVectors.of(gallery).blocks():
        embeddings = vectors.reshape(-1, *gallery.space.item_shape)
        here = wanted[first : first + len(embeddings)]
        if here.any():
            yield items.slice(first, len(embeddings)).filter(pa.array(here)), embeddings[here]
        first += len(embeddings)


def _target(client: Any, uri: str, alias: str) -> str | None:
    """Return the collection that an alias leads to, or None if there is no such alias."""
    with reported(uri):
        if not client.has_collection(alias, timeout=READ_S) or alias in client.list_collections(timeout=READ_S):
            return None
        return str(client.describe_alias(alias, timeout=READ_S)["collection_name"])


def _opened(root: Path, space: SpaceSpec) -> tuple[Collection, MilvusPlace]:
    """Open the collection of an index."""
    place = _place(root)
    named = os.environ.get(ADDRESS) or None
    uri = named or (str(root / place.uri) if is_file(place.uri) else place.uri)
    check_address(uri)
    if is_file(uri) and not Path(uri).is_dir():
        raise SearchIndexError(
            f"index {root}: its Milvus is not at {uri}; move it there, or name where it is in {ADDRESS}", path=Path(uri)
        )
    client = connected(uri, named=named is not None)
    return Collection.opened(client, uri, place.collection, space, place.fields), place


def _place(root: Path) -> MilvusPlace:
    return read_record(
        root / _PLACE,
        MilvusPlace,
        raises=SearchIndexError,
        missing=f"{root} has no {_PLACE}; {_WAY_OUT}",
        way_out=_WAY_OUT,
        sealed=True,
    )


def _switch(client: Any, uri: str, name: str, fresh: str) -> str | None:
    """Lead the alias to a new collection. Return the one that it led to before, or None."""
    last = _target(client, uri, name)
    with reported(uri):
        if last is None:
            client.create_alias(fresh, name, timeout=WRITE_S)
        else:
            client.alter_alias(fresh, name, timeout=WRITE_S)
    return last


def _drop_older(client: Any, uri: str, name: str, *, index: str, keep: tuple[str | None, ...]) -> None:
    """Drop the collections of an index's earlier builds under a name."""
    builds = re.compile(rf"{re.escape(name)}_\d{{10}}_[0-9a-f]{{8}}")
    with reported(uri):
        for old in client.list_collections(timeout=READ_S):
            if builds.fullmatch(old) and old not in keep and property_of(client, uri, old, INDEX) == index:
                client.drop_collection(old, timeout=WRITE_S)
