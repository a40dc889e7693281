"""The path and the metadata of the image in each row of an index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery.store import Gallery, GalleryShard
from cirrus_client.parquet import read_parquet

ITEMS = "items.parquet"
_PATH = "image_path"
_DIGEST = "cirrus:sha256"
_DIGEST_BYTES = 32
_SCHEMA = pa.schema({_PATH: pa.string()})
_VECTORS = b"cirrus:vectors"
_WAY_OUT = "build the index again with `cirrus index`"


@dataclass(frozen=True)
class Item:
    """A gallery image.

    id: path relative to the root of the images. image: where the image is, a file path or a URL. metadata: the other
    columns of `items.parquet`.
    """

    id: str
    image: str
    metadata: dict[str, Any]


class Items:
    """The images in the rows of an index. Threads may share it."""

    def __init__(self, table: pa.Table, *, images: str) -> None:
        self._digests = _Digests.of(table[_DIGEST]) if _DIGEST in table.column_names else None
        self._table = table if self._digests is None else table.drop_columns([_DIGEST])
        self.images = images

    @staticmethod
    def read(path: Path, *, images: str, vectors: str) -> Items:
        """Read `items.parquet`. images: the root of the paths, a folder or a URL prefix. vectors: see `write_items`.

        Raises SearchIndexError if it can't be read, or belongs to other vectors.
        """
        table = read_parquet(path, schema=_SCHEMA, raises=SearchIndexError, way_out=_WAY_OUT)
        if (table.schema.metadata or {}).get(_VECTORS) != vectors.encode():
            raise SearchIndexError(f"{path} lists the images of another index; {_WAY_OUT}", path=path)
        return Items(table, images=images)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def rows(self, rows: Sequence[int]) -> list[Item]:
        """Return the images of rows, in the order of `rows`."""
        if any(not 0 <= row < len(self) for row in rows):
            raise SearchIndexError(f"the index answered with a row that is not one of its {len(self)}; {_WAY_OUT}")
        records = self._table.take(pa.array(rows, pa.int64())).to_pylist()
        return [Item(path := record.pop(_PATH), self._located(path), record) for record in records]

    @property
    def columns(self) -> pa.Table:
        """The metadata of all images: the columns without the paths, in the order of the rows."""
        return self._table.drop_columns([_PATH])

    def same_bytes(self, content: bytes) -> list[int]:
        """Return the rows of images whose files have this content; none in an index of an older version."""
        return [] if self._digests is None else self._digests.rows(hashlib.sha256(content).digest())

    def find(self, id: str) -> int | None:
        """Return the row of an image by its id, or None."""
        row = pc.index(self._table[_PATH], pa.scalar(id, pa.string())).as_py()
        return None if row < 0 else int(row)

    def _located(self, path: str) -> str:
        if "://" in path:
            return path
        if "://" in self.images:
            return f"{self.images.rstrip('/')}/{quote(path)}"
        return str(Path(self.images) / path)


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
    if metadata is not None:
        _check_metadata(metadata)
    columns = _common([_columns_of(shard).schema for shard in gallery.shards()])
    writer: pq.ParquetWriter | None = None
    try:
        for shard in gallery.shards():
            items = _fitted(_columns_of(shard), columns)
            items = items if metadata is None else _joined(items, metadata)
            writer = writer or pq.ParquetWriter(path, items.schema.with_metadata({_VECTORS: vectors}))
            writer.write_table(items.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()


def read_metadata(path: Path, *, key: str = _PATH) -> pa.Table:
    """Read metadata of images from a Parquet file.

    key: the column with the images' paths, relative to their root; it is named `image_path` in the result. Raises
    SearchIndexError if the file can't be read, or has no such column of texts.
    """
    way_out = "--metadata takes a Parquet file, and --key its column of paths"
    table = read_parquet(path, raises=SearchIndexError, way_out=way_out)
    if key not in table.column_names:
        found = ", ".join(table.column_names)
        raise SearchIndexError(f"{path} has no column '{key}', only {found}; {way_out}", path=path)
    if key != _PATH and _PATH in table.column_names:
        table = table.drop_columns([_PATH])
    table = table.rename_columns([_PATH if name == key else name for name in table.column_names])
    paths = table[_PATH]
    if not (pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type)):
        raise SearchIndexError(f"{path}: its column '{key}' is {paths.type}, and paths are texts; {way_out}", path=path)
    return table.set_column(table.column_names.index(_PATH), _PATH, paths.cast(pa.string()))


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of `items.parquet` as metadata of images. Raises SearchIndexError if it can't be read."""
    return read_parquet(path, schema=_SCHEMA, raises=SearchIndexError, way_out=_WAY_OUT).select([_PATH, *columns])


def metadata_columns(metadata: pa.Table) -> tuple[str, ...]:
    """Return the names of the columns that metadata adds to the images."""
    return tuple(name for name in metadata.column_names if name != _PATH)


def _columns_of(shard: GalleryShard) -> pa.Table:
    items = shard.items.drop_columns(["size", "mtime_ns", "etag", "sha256"])
    digests = [bytes.fromhex(text) if text else None for text in shard.items["sha256"].to_pylist()]
    return items.append_column(_DIGEST, pa.array(digests, pa.binary(_DIGEST_BYTES)))


def _common(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns of all schemas. One whose types have nothing in common becomes texts."""
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
            columns.append(
                pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
            )
    return pa.table(columns, schema)


def _check_metadata(metadata: pa.Table) -> None:
    if _PATH not in metadata.column_names:
        found = ", ".join(metadata.column_names)
        raise SearchIndexError(f"metadata: has no column '{_PATH}', only {found}")
    if metadata.num_rows != len(pc.unique(metadata[_PATH])):
        raise SearchIndexError(f"metadata: its column '{_PATH}' names some images twice")


def _joined(items: pa.Table, metadata: pa.Table) -> pa.Table:
    """Add the columns of metadata to items. Rows of images that metadata does not contain are null."""
    places = pc.index_in(items[_PATH], value_set=metadata[_PATH].combine_chunks())
    found = metadata.drop_columns([_PATH]).take(places)
    for name in found.column_names:
        items = items.drop_columns([name]) if name in items.column_names else items
        items = items.append_column(name, found[name])
    return items
