"""What a collection of Milvus knows of its items."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cirrus_client.errors import InvalidFilter
from cirrus_client.index.columns import ColumnSummary, numbered
from cirrus_client.index.conditions import ColumnType, checked, unknown_column
from cirrus_client.index.filter_models import Filter
from cirrus_client.index.items import Groups, Item, located
from cirrus_client.index.milvus.collection import Collection
from cirrus_client.index.milvus.expression import expression, text_literal, without_values
from cirrus_client.index.milvus.fields import ID, ITEM, SHA256, Field, column_of, held


class MilvusItems:
    """The items of a collection. Threads may share it, and with those that change the collection."""

    def __init__(self, collection: Collection, *, images: str, summary: Sequence[ColumnSummary]) -> None:
        """Keep a collection. images: the root of the images' paths. summary: of the columns when it was built."""
        self._collection = collection
        self._fields = {field.name: field for field in collection.fields}
        self._summary = list(summary)
        self.images = images

    def __len__(self) -> int:
        return self._collection.count()

    def rows(self, rows: Sequence[int]) -> list[Item | None]:
        """See `Items.rows`."""
        fields = self._collection.fields
        found = self._collection.first_rows(rows, [ID, *(field.field for field in fields)])
        columns = [held([row.get(field.field) for row in found.values()], field) for field in fields]
        records = zip(*columns, strict=True) if fields else ((),) * len(found)
        items = {
            number: Item(row[ID], located(self.images, row[ID]), dict(zip(self._fields, record, strict=True)))
            for (number, row), record in zip(found.items(), records, strict=True)
        }
        return [items.get(row) for row in rows]

    def find(self, id: str) -> int | None:
        """See `Items.find`."""
        return self._collection.numbers_of([id]).get(id)

    def same_bytes(self, content: bytes) -> list[int]:
        """See `Items.same_bytes`."""
        digest = hashlib.sha256(content).hexdigest()
        return sorted({int(row[ITEM]) for row in self._collection.query(f"{SHA256} == {text_literal(digest)}", [ITEM])})

    def ids(self) -> Iterator[str]:
        """See `Items.ids`."""
        return (id for id, _ in self._collection.digests())

    def columns(self) -> list[ColumnSummary]:
        """See `Items.columns`. Their values and ranges are those of when the index was built."""
        return self._summary

    def select(self, wanted: Filter) -> str:
        """See `Items.select`."""
        return expression(checked(wanted, self._collection.columns), self._fields)

    def groups(self, column: str) -> Groups:
        """See `Items.groups`."""
        field = self._fields.get(column)
        if field is None:
            raise unknown_column(column, self._collection.columns, place="unique")
        if field.type is ColumnType.OTHER:
            raise InvalidFilter(f"the values of column {column!r} can't be told apart", place="unique")

        return _Groups(self._collection, field)


class _Groups:
    """Groups of items by a field, whose values are asked for when rows are known. Threads may share it."""

    def __init__(self, collection: Collection, field: Field) -> None:
        self._collection = collection
        self._field = field

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        found = self._values(rows)
        return numbered(pa.chunked_array([column_of([found.get(row) for row in rows.tolist()], self._field)]))

    def others(self, rows: NDArray[np.int64], among: str | None) -> str:
        others = without_values(self._field.field, set(self._values(rows).values()))
        return f"({among}) and {others}" if among else others

    def _values(self, rows: NDArray[np.int64]) -> dict[int, Any]:
        found = self._collection.first_rows(rows.tolist(), [self._field.field])
        return {row: of_row.get(self._field.field) for row, of_row in found.items()}
