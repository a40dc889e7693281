"""Items in a Parquet file, `items.parquet`: written, joined with metadata, and read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery.store import Gallery, GalleryShard
from cirrus_client.index.columns import ColumnSummary, described, numbered
from cirrus_client.index.conditions import unknown_column
from cirrus_client.index.filter_models import Filter
from cirrus_client.index.filters import Mask, matching
from cirrus_client.index.items import Groups, Item, located
from cirrus_client.kept_columns import as_texts, is_text, kept_column
from cirrus_client.parquet import names_taken_twice, read_parquet

ITEMS = "items.parquet"
PATH = "image_path"
DIGEST = "cirrus:sha256"
_DIGEST_BYTES = 32
_SCHEMA = pa.schema({PATH: pa.string()})
_VECTORS = b"cirrus:vectors"
_WAY_OUT = "build the index again with `cirrus index`"


class ParquetItems:
    """The images of `items.parquet`; row i is the image of row i of the index. Threads may share it."""

    def __init__(self, table: pa.Table, *, images: str) -> None:
        self._digests = _Digests.of(table[DIGEST]) if DIGEST in table.column_names else None
        self._table = table if self._digests is None else table.drop_columns([DIGEST])
        self._metadata = self._table.drop_columns([PATH])
        self.images = images

    @staticmethod
    def read(path: Path, *, images: str, vectors: str) -> ParquetItems:
        """Read `items.parquet`. images: the root of the paths, a folder or a URL prefix. vectors: see `write_items`.

        Raises SearchIndexError if it can't be read, or belongs to other vectors.
        """
        table = read_parquet(path, schema=_SCHEMA, raises=SearchIndexError, way_out=_WAY_OUT)
        if (table.schema.metadata or {}).get(_VECTORS) != vectors.encode():
            raise SearchIndexError(f"{path} lists the images of another index; {_WAY_OUT}", path=path)
        return ParquetItems(table, images=images)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def rows(self, rows: Sequence[int]) -> list[Item | None]:
        """See `Items.rows`."""
        places = pa.array([row if 0 <= row < len(self) else None for row in rows], pa.int64())
        return [self._item(record) for record in self._table.take(places).to_pylist()]

    def find(self, id: str) -> int | None:
        """See `Items.find`."""
        row = pc.index(self._table[PATH], pa.scalar(id, pa.string())).as_py()
        return None if row < 0 else int(row)

    def same_bytes(self, content: bytes) -> list[int]:
        """See `Items.same_bytes`. An index of an older version has none."""
        return [] if self._digests is None else self._digests.rows(hashlib.sha256(content).digest())

    def ids(self) -> Iterator[str]:
        """See `Items.ids`."""
        for chunk in self._table[PATH].chunks:
            for path in chunk:
                yield path.as_py()

    def columns(self) -> list[ColumnSummary]:
        """See `Items.columns`."""
        return described(self._metadata)

    def select(self, wanted: Filter) -> Mask:
        """See `Items.select`."""
        return matching(self._metadata, wanted)

    def groups(self, column: str) -> Groups:
        """See `Items.groups`."""
        if column not in self._metadata.column_names:
            raise unknown_column(column, self._metadata.schema, place="unique")
        return _Groups(numbered(self._metadata[column]))

    def _item(self, record: dict[str, Any]) -> Item | None:
        path = record.pop(PATH)
        return None if path is None else Item(path, located(self.images, path), record)


class _Groups:
    """Groups of rows. numbers: that of every row, int64 [N], or below 0 for none."""

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self._numbers = numbers

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._numbers[rows]

    def others(self, rows: NDArray[np.int64], among: Mask | None) -> Mask:
        others: Mask = (self._numbers < 0) | ~np.isin(self._numbers, self._numbers[rows])
        return others if among is None else among & others


class _Digests:
    """The SHA-256 of every row, in their order, and an order in which one is found without a look at all."""

    def __init__(self, digests: NDArray[np.uint8]) -> None:
        self._digests = digests
        starts = digests[:, :8].copy().view(np.uint64)[:, 0]
        self._order = np.argsort(starts, kind="stable")
        self._starts = starts[self._order]

    @staticmethod
    def of(column: pa.ChunkedArray) -> _Digests:
        filled = pc.fill_null(column, b"\0" * _DIGEST_BYTES).combine_chunks()
        return _Digests(np.frombuffer(b"".join(filled.to_pylist()), np.uint8).reshape(-1, _DIGEST_BYTES))

    def rows(self, digest: bytes) -> list[int]:
        wanted = np.frombuffer(digest, np.uint8)
        start = wanted[:8].copy().view(np.uint64)[0]
        places = self._order[np.searchsorted(self._starts, start) : np.searchsorted(self._starts, start, side="right")]
        return [int(row) for row in places if (self._digests[row] == wanted).all()]


def write_items(gallery: Gallery, path: Path, metadata: pa.Table | None, *, vectors: str) -> None:
    """Write `items.parquet`, reading one shard of the gallery at a time.

    metadata: see `build_index`. vectors: a checksum of the index's vectors, which is kept in the file, so that it is
    not taken for the list of other vectors.
    """
    columns = _common(gallery)
    writer: pq.ParquetWriter | None = None
    try:
        for shard in gallery.shards():
            items = _fitted(_columns_of(shard), columns)
            items = _kept(items if metadata is None else _joined(items, metadata))
            writer = writer or pq.ParquetWriter(path, items.schema.with_metadata({_VECTORS: vectors}))
            writer.write_table(items.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()


def read_metadata(path: Path, *, key: str = PATH) -> pa.Table:
    """Read metadata of images from a Parquet file.

    key: the column with the images' paths, relative to their root; it is named `image_path` in the result. Raises
    SearchIndexError if the file can't be read, or has no such column of texts.
    """
    way_out = "--metadata takes a Parquet file, and --key its column of paths"
    table = read_parquet(path, raises=SearchIndexError, way_out=way_out)
    _check_names(table, f"{path}")
    if key not in table.column_names:
        found = ", ".join(table.column_names)
        raise SearchIndexError(f"{path} has no column '{key}', only {found}; {way_out}", path=path)
    if key != PATH and PATH in table.column_names:
        table = table.drop_columns([PATH])
    table = table.rename_columns([PATH if name == key else name for name in table.column_names])
    paths = table[PATH]
    if not is_text(paths.type):
        raise SearchIndexError(f"{path}: its column '{key}' is {paths.type}, and paths are texts; {way_out}", path=path)
    return table.set_column(table.column_names.index(PATH), PATH, paths.cast(pa.string()))


def checked_metadata(metadata: pa.Table, gallery: Gallery) -> pa.Table:
    """Return what metadata has for the images of a gallery: rows that name no image are left out.

    Raises SearchIndexError if two columns have one name, an image is named twice, none of the gallery's images is
    named, or a column has values that no answer can say.
    """
    _check_names(metadata, "metadata")
    if PATH not in metadata.column_names:
        found = ", ".join(metadata.column_names)
        raise SearchIndexError(f"metadata: has no column '{PATH}', only {found}")
    metadata = _kept(metadata.drop_columns([DIGEST]) if DIGEST in metadata.column_names else metadata)
    metadata = metadata.filter(pc.is_valid(metadata[PATH]))
    if metadata.num_rows != len(pc.unique(metadata[PATH])):
        raise SearchIndexError(f"metadata: its column '{PATH}' names some images twice")
    if not any(_named_by_shard(metadata, gallery)) and any(shard.items.num_rows for shard in gallery.shards()):
        raise SearchIndexError(_none_named(metadata, gallery))
    return metadata


def count_named(metadata: pa.Table, gallery: Gallery) -> int:
    """Return how many of a gallery's images are named by the paths of metadata."""
    return sum(_named_by_shard(metadata, gallery))


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of `items.parquet` as metadata of images. Raises SearchIndexError if it can't be read."""
    return read_parquet(path, schema=_SCHEMA, raises=SearchIndexError, way_out=_WAY_OUT).select([PATH, *columns])


def metadata_columns(metadata: pa.Table) -> tuple[str, ...]:
    """Return the names of the columns that metadata adds to the images."""
    return tuple(name for name in metadata.column_names if name != PATH)


def _columns_of(shard: GalleryShard) -> pa.Table:
    others = [name for name in shard.items.column_names if name in ("size", "mtime_ns", "etag", "sha256", DIGEST)]
    items = shard.items.drop_columns(others)
    digests = [bytes.fromhex(text) if text else None for text in shard.items["sha256"].to_pylist()]
    return items.append_column(DIGEST, pa.array(digests, pa.binary(_DIGEST_BYTES)))


def _common(gallery: Gallery) -> pa.Schema:
    """Return the columns of all shards. One whose values no common type holds as they are becomes texts."""
    schemas = [_columns_of(shard).schema for shard in gallery.shards()]
    common = _unified(schemas)
    found = {(field.name, field.type) for schema in schemas for field in schema}
    promoted = {name for name, type_ in found if type_ not in (pa.null(), common.field(name).type)}
    for shard in gallery.shards() if promoted else ():
        items = _columns_of(shard)
        for name in promoted.intersection(items.column_names):
            if not _is_castable(items[name], common.field(name).type):
                common = common.set(common.get_field_index(name), pa.field(name, pa.string()))
    return common


def _is_castable(column: pa.ChunkedArray, type_: pa.DataType) -> bool:
    try:
        column.cast(type_)
    except pa.ArrowException:
        return False
    return True


def _unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        names = dict.fromkeys(name for schema in schemas for name in schema.names)
        kinds = {name: {schema.field(name).type for schema in schemas if name in schema.names} for name in names}
        return pa.schema({name: found.pop() if len(found) == 1 else pa.string() for name, found in kinds.items()})


def _fitted(items: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if field.name not in items.column_names:
            columns.append(pa.nulls(items.num_rows, field.type))
            continue
        column = items[field.name]
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            columns.append(as_texts(column.to_pylist()))
    return pa.table(columns, schema)


def _kept(table: pa.Table) -> pa.Table:
    """Return a table with its columns in the types that an index keeps. Raises SearchIndexError; see `kept_column`."""
    for place, name in enumerate(table.column_names):
        try:
            table = table.set_column(place, name, kept_column(table[name]))
        except ValueError as error:
            raise SearchIndexError(f"column '{name}' is {error}: make it one of texts") from None
    return table


def _check_names(table: pa.Table, what: str) -> None:
    twice = names_taken_twice(table.column_names)
    if twice:
        raise SearchIndexError(f"{what} has several columns named {', '.join(twice)}: rename them")


def _named_by_shard(metadata: pa.Table, gallery: Gallery) -> Iterator[int]:
    paths = metadata[PATH].combine_chunks()
    for shard in gallery.shards():
        yield pc.sum(pc.is_in(shard.items[PATH], paths)).as_py() or 0


def _none_named(metadata: pa.Table, gallery: Gallery) -> str:
    own = next((path for shard in gallery.shards() for path in shard.items[PATH].slice(0, 1).to_pylist()), None)
    example = f"they are like {metadata[PATH][0].as_py()!r}" if len(metadata) else "it is empty"
    return (
        f"metadata: its paths name none of the gallery's images; {example}, the gallery's like {own!r}: give the "
        "column of paths with --key, and the paths as the gallery has them"
    )


def _joined(items: pa.Table, metadata: pa.Table) -> pa.Table:
    """Add the columns of metadata to items. Rows of images that metadata does not contain are null."""
    places = pc.index_in(items[PATH], value_set=metadata[PATH].combine_chunks())
    found = metadata.drop_columns([PATH]).take(places)
    for name in found.column_names:
        items = items.drop_columns([name]) if name in items.column_names else items
        items = items.append_column(name, found[name])
    return items
