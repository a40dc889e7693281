"""A collection of Milvus that holds an index: made, found again, read and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError, SpaceMismatch
from cirrus_client.extras import need
from cirrus_client.forks import MadeHere
from cirrus_client.index.conditions import ColumnType
from cirrus_client.index.milvus.connection import FLUSH_S, READ_S, WRITE_S, is_file, reported
from cirrus_client.index.milvus.expression import text_literal
from cirrus_client.index.milvus.fields import (
    ID,
    ITEM,
    MAX_TEXT_BYTES,
    PK,
    SHA256,
    VECTOR,
    Field,
    check_finite,
    check_texts,
    schema_of,
    stored,
)
from cirrus_client.index.parquet_items import DIGEST, PATH

MOST_ROWS = 16_384
"""The most rows that Milvus returns for a query."""

SPACE = "cirrus_space"
"""The property of a collection that is the fingerprint of its space."""

INDEX = "cirrus_index"
"""The property of a collection that names the index whose build made it."""

_BATCH_BYTES = 16 * 2**20  # an insert has at most 64 MiB
_ITEMS_AT_ONCE = 1_000  # an answer with their texts is a message that gRPC takes
_STRONG = "Strong"
_NOT_LOADED = 101  # Milvus's code for it


@dataclass(frozen=True)
class Collection:
    """A loaded collection. Threads may share it.

    Reads see every write that was finished before them.
    """

    client: Any
    uri: str
    name: str
    space: SpaceSpec
    fields: tuple[Field, ...]
    made_here: MadeHere

    @staticmethod
    def created(
        client: Any, uri: str, name: str, space: SpaceSpec, fields: tuple[Field, ...], *, index: str
    ) -> Collection:
        """Create an empty collection for items of a space. index: names the index that it is for."""
        with reported(uri):
            client.create_collection(
                name,
                schema=_schema(client, space, fields),
                properties={SPACE: space.fingerprint, INDEX: index},
                consistency_level=_STRONG,
                timeout=WRITE_S,
            )
            client.create_index(name, _indexes(client), timeout=WRITE_S, sync=False)
            client.load_collection(name, timeout=WRITE_S)
        return Collection(client, uri, name, space, fields, MadeHere("a connection to Milvus"))

    @staticmethod
    def opened(client: Any, uri: str, name: str, space: SpaceSpec, fields: tuple[Field, ...]) -> Collection:
        """Open a collection.

        Raises SearchIndexError if it is not there, SpaceMismatch if its vectors are of another space.
        """
        found = property_of(client, uri, name, SPACE)
        if found is None:
            raise SearchIndexError(
                f"Milvus at {uri} has no collection {name}; build the index again with `cirrus index`"
            )
        if found != space.fingerprint:
            raise SpaceMismatch(
                f"the collection {name} at {uri} has vectors of space {found or 'unknown'}, the index expects "
                f"{space.fingerprint}: build the index again with `cirrus index`"
            )
        with reported(uri):
            client.load_collection(name, timeout=WRITE_S)
        return Collection(client, uri, name, space, fields, MadeHere("a connection to Milvus"))

    def __reduce__(self) -> NoReturn:
        """Raise SearchIndexError: a connection is of one process."""
        raise SearchIndexError("an index does not pickle; open it in each worker: open_index(folder)")

    @cached_property
    def columns(self) -> pa.Schema:
        """The columns of the metadata, as filters see them."""
        return schema_of(self.fields)

    def count(self) -> int:
        """Return the number of items."""
        (found,) = self.query("", ["count(*)"])
        return int(found["count(*)"]) // self.space.vectors

    def query(self, expression: str, output: Sequence[str]) -> list[dict[str, Any]]:
        """Return fields of the rows for which an expression is true. At most `MOST_ROWS` may be."""
        return list(self._read(self.client.query, filter=expression, output_fields=list(output)))

    def first_rows(self, items: Sequence[int], output: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Return fields of items, by the items' rows. Items that are gone are left out."""
        wanted, found = sorted(set(items)), {}
        for start in range(0, len(wanted), _ITEMS_AT_ONCE):
            numbers = [item * self.space.vectors for item in wanted[start : start + _ITEMS_AT_ONCE]]
            for row in self.query(f"{PK} in {numbers}", [ITEM, *output]):
                found[int(row[ITEM])] = row
        return found

    def numbers_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the rows of those items that are there, by their ids."""
        found: dict[str, int] = {}
        per_query = max(1, min(_ITEMS_AT_ONCE, MOST_ROWS // self.space.vectors))
        for start in range(0, len(ids), per_query):
            names = ", ".join(map(text_literal, ids[start : start + per_query]))
            found |= {row[ID]: int(row[ITEM]) for row in self.query(f"{ID} in [{names}]", [ID, ITEM])}
        return found

    def vectors(self, items: Sequence[int]) -> Embeddings:
        """Return the vectors of items, float32 [n, V, D]; zeros for an item that is gone."""
        found = np.zeros((len(items), self.space.vectors, self.space.dim), dtype=np.float32)
        places: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(int(item), []).append(place)
        per_query = max(
            1, min(MOST_ROWS // self.space.vectors, _BATCH_BYTES // (4 * self.space.vectors * self.space.dim))
        )
        wanted = list(places)
        for start in range(0, len(wanted), per_query):
            for row in self.query(f"{ITEM} in {wanted[start : start + per_query]}", [PK, ITEM, VECTOR]):
                found[places[int(row[ITEM])], int(row[PK]) % self.space.vectors] = row[VECTOR]
        return found

    def digests(self) -> Iterator[tuple[str, bytes | None]]:
        """Yield the id of every item, and the sha256 of its image's file if it is known."""
        pages = self._read(self.client.query_iterator, batch_size=1_000, output_fields=[PK, ID, SHA256])
        try:
            while True:
                with reported(self.uri):
                    page = pages.next()
                if not page:
                    return
                for row in page:
                    if int(row[PK]) % self.space.vectors == 0:
                        yield row[ID], bytes.fromhex(row[SHA256]) if row[SHA256] else None
        finally:
            pages.close()

    def search(self, queries: Embeddings, k: int, expression: str) -> list[list[tuple[int, float]]]:
        """Return the numbers (`pk`) and scores of the k best vectors per query, best first; at most `MOST_ROWS`."""
        found = self._read(
            self.client.search,
            data=list(queries),
            anns_field=VECTOR,
            filter=expression,
            limit=k,
            output_fields=[PK],
            search_params={"metric_type": "IP"},
        )
        return [[(int(hit[PK]), float(hit["distance"])) for hit in hits] for hits in found]

    def put(
        self,
        items: NDArray[np.int64],
        table: pa.Table,
        embeddings: Embeddings,
        *,
        replace: bool,
        kept: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write items. replace: whether some of them may be there.

        items: their rows, int64 [n]. table: `image_path`, the digests and columns of the metadata. embeddings: float32
        [n, V, D]. kept: what items have in the fields of columns that are missing, by their rows; else those are empty.
        """
        self.made_here.check(SearchIndexError)
        columns = self._columns(table, [(kept or {}).get(item, {}) for item in items.tolist()])
        size = self.space.vectors * (4 * self.space.dim + table.nbytes // max(1, table.num_rows))
        per_batch = max(1, _BATCH_BYTES // size)
        write = self.client.upsert if replace else self.client.insert
        for start in range(0, len(items), per_batch):
            places = range(start, min(start + per_batch, len(items)))
            rows = [row for place in places for row in self._rows(int(items[place]), embeddings[place], columns, place)]
            with reported(self.uri):
                write(self.name, rows, timeout=WRITE_S)

    def flush(self) -> None:
        """Store what was written in segments. The embedded Milvus compares what is not in one row by row, in Python."""
        with reported(self.uri):
            self.client.flush(self.name, timeout=FLUSH_S)

    def remove(self, items: Sequence[int]) -> None:
        """Remove items."""
        self.made_here.check(SearchIndexError)
        numbers = [item * self.space.vectors + place for item in items for place in range(self.space.vectors)]
        for start in range(0, len(numbers), MOST_ROWS):
            with reported(self.uri):
                self.client.delete(self.name, ids=numbers[start : start + MOST_ROWS], timeout=WRITE_S)

    def _read(self, call: Callable[..., Any], **options: Any) -> Any:
        """Call a method of the client that reads. What was released, as by a server that restarted, is loaded again."""
        self.made_here.check(SearchIndexError)
        options |= {"consistency_level": _STRONG, "timeout": READ_S}
        with reported(self.uri):
            try:
                return call(self.name, **options)
            except need("pymilvus", "the index backend milvus").MilvusException as error:
                if error.code != _NOT_LOADED:
                    raise
                self.client.load_collection(self.name, timeout=WRITE_S)
                return call(self.name, **options)

    def _columns(self, table: pa.Table, kept: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Return the values of all fields but the numbers and the vector. kept: of columns that are missing."""
        paths = table[PATH].to_pylist()
        check_texts(PATH, paths)
        digests = table[DIGEST].to_pylist() if DIGEST in table.column_names else [None] * len(paths)
        columns = {ID: paths, SHA256: [None if digest is None else digest.hex() for digest in digests]}
        for field in self.fields:
            given = field.name in table.column_names
            columns[field.field] = stored(table[field.name], field) if given else [row.get(field.field) for row in kept]
            if field.type is ColumnType.NUMBER and not is_file(self.uri):
                check_finite(field.name, columns[field.field])
        return columns

    def _rows(self, item: int, vectors: Embeddings, columns: dict[str, list[Any]], place: int) -> list[dict[str, Any]]:
        """Return the rows of an item, one per vector. vectors: [V, D]. place: of the item in the columns."""
        shared = {name: values[place] for name, values in columns.items()}
        first = item * self.space.vectors
        return [{PK: first + number, ITEM: item, VECTOR: one, **shared} for number, one in enumerate(vectors)]


def property_of(client: Any, uri: str, name: str, key: str) -> str | None:
    """Return a property of a collection, "" if it has none, or None if there is no such collection."""
    with reported(uri):
        if not client.has_collection(name, timeout=READ_S):
            return None
        described = client.describe_collection(name, timeout=READ_S)
    return str(described.get("properties", {}).get(key, ""))


def _schema(client: Any, space: SpaceSpec, fields: Sequence[Field]) -> Any:
    types = need("pymilvus", "the index backend milvus").DataType
    of_type = {
        ColumnType.INTEGER: types.INT64,
        ColumnType.NUMBER: types.DOUBLE,
        ColumnType.BOOLEAN: types.BOOL,
        ColumnType.DATE: types.INT64,
        ColumnType.TIME: types.INT64,
    }
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(PK, types.INT64, is_primary=True)
    schema.add_field(ITEM, types.INT64)
    schema.add_field(ID, types.VARCHAR, max_length=MAX_TEXT_BYTES)
    schema.add_field(SHA256, types.VARCHAR, max_length=64, nullable=True)
    schema.add_field(VECTOR, types.FLOAT_VECTOR, dim=space.dim)
    for field in fields:
        if field.type in of_type:
            schema.add_field(field.field, of_type[field.type], nullable=True)
        else:
            schema.add_field(field.field, types.VARCHAR, max_length=MAX_TEXT_BYTES, nullable=True)
    return schema


def _indexes(client: Any) -> Any:
    indexes = client.prepare_index_params()
    indexes.add_index(VECTOR, index_type="FLAT", metric_type="IP")
    for name in (ITEM, ID, SHA256):
        indexes.add_index(name, index_type="INVERTED")
    return indexes
