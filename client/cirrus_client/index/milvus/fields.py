"""The fields of a collection: which there are, and how the columns of the metadata are stored in them.

A row of the collection is one vector of an item. Its fields:
  pk           the item's row times V, plus the place of the vector among the item's V
  item         the item's row
  id           the path of the item's image
  sha256       of the image's bytes, in hexadecimal, or null
  vector       the vector
  c0, c1 ...   the columns of the metadata, since a column may have any name, and a field may not
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import StringConstraints
from pydantic_core import to_jsonable_python

from cirrus_client.errors import SearchIndexError
from cirrus_client.index.conditions import ColumnType, column_type
from cirrus_client.records import Record

PK = "pk"
ITEM = "item"
ID = "id"
SHA256 = "sha256"
VECTOR = "vector"
MAX_TEXT_BYTES = 65_535
_STORED = {
    ColumnType.STRING: pa.string(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.NUMBER: pa.float64(),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.DATE: pa.int64(),
    ColumnType.TIME: pa.int64(),
    ColumnType.OTHER: pa.string(),
}


class Field(Record):
    """A column of the metadata, and the field that holds it.

    name: the column's. field: its name in Milvus. zone: the time zone of a column of times.

    Dates are stored as days since 1970, times as microseconds since then, and what has no type of its own in Milvus,
    like lists, as JSON.
    """

    name: str
    field: Annotated[str, StringConstraints(pattern=r"^c[0-9]+$")]
    type: ColumnType
    zone: str | None = None

    @property
    def seen(self) -> pa.DataType:
        """The type of the column as filters see it; null for one that can only be tested for null."""
        if self.type is ColumnType.DATE:
            return pa.date32()
        if self.type is ColumnType.TIME:
            return pa.timestamp("us", self.zone)
        return pa.null() if self.type is ColumnType.OTHER else _STORED[self.type]


def fields_of(schema: pa.Schema) -> tuple[Field, ...]:
    """Return the fields for the columns of metadata."""
    return tuple(
        Field(
            name=column.name, field=f"c{number}", type=column_type(column.type), zone=getattr(column.type, "tz", None)
        )
        for number, column in enumerate(schema)
    )


def schema_of(fields: Iterable[Field]) -> pa.Schema:
    """Return the columns that fields hold, with the types that filters see."""
    return pa.schema([(field.name, field.seen) for field in fields])


def stored(column: pa.ChunkedArray, field: Field) -> list[Any]:
    """Return the values of a column as its field holds them.

    Raises SearchIndexError if the column's type is not the field's, an integer is not one of 64 bits, or a text is
    longer than Milvus takes.
    """
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_null(column.type):
        return [None] * len(column)
    kind = column_type(column.type)
    if kind is not field.type and (kind, field.type) != (ColumnType.INTEGER, ColumnType.NUMBER):
        raise SearchIndexError(
            f"metadata: column '{field.name}' is {column.type}, and the collection holds values of type {field.type}: "
            "convert it, or build the index anew"
        )
    if field.type is ColumnType.OTHER:
        values: list[Any] = [_json(value) for value in column.to_pylist()]
    else:
        values = _plain(column, field).to_pylist()
    if field.type in (ColumnType.STRING, ColumnType.OTHER):
        check_texts(field.name, values)
    return values


def held(values: Sequence[Any], field: Field) -> list[Any]:
    """Return the values of a column from what its field holds."""
    if field.type is ColumnType.OTHER:
        return [None if value is None else json.loads(value) for value in values]
    found: list[Any] = column_of(values, field).to_pylist()
    return found


def column_of(values: Sequence[Any], field: Field) -> pa.Array:
    """Return what a field holds as a column of the type that filters see; texts of JSON for one of no such type."""
    array = pa.array(values, _STORED[field.type])
    if field.type is ColumnType.DATE:
        return array.cast(pa.int32()).cast(pa.date32())
    return array.cast(field.seen) if field.type is ColumnType.TIME else array


def check_texts(name: str, values: Iterable[str | None]) -> None:
    """Raise SearchIndexError if a text of a column is longer than Milvus takes."""
    for value in values:
        if value is not None and len(value) * 4 > MAX_TEXT_BYTES and len(value.encode()) > MAX_TEXT_BYTES:
            raise SearchIndexError(
                f"metadata: column '{name}' has a value of {len(value.encode()):,} bytes, and Milvus takes "
                f"{MAX_TEXT_BYTES:,}: shorten it, or leave the column out"
            )


def check_finite(name: str, values: Iterable[float | None]) -> None:
    """Raise SearchIndexError if a number of a column is none that a server of Milvus takes."""
    if not all(value is None or math.isfinite(value) for value in values):
        raise SearchIndexError(
            f"metadata: column '{name}' has numbers that are infinite or NaN, which a server of Milvus does not take: "
            "make them empty"
        )


def _plain(column: pa.ChunkedArray, field: Field) -> pa.ChunkedArray:
    if field.type is ColumnType.DATE:
        return column.cast(pa.date32()).cast(pa.int32())
    if field.type is ColumnType.TIME:
        return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    try:
        return column.cast(_STORED[field.type])
    except pa.ArrowInvalid:
        raise SearchIndexError(
            f"metadata: column '{field.name}' has values that are not integers of 64 bits: make it one of texts"
        ) from None


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=_as_text)


def _as_text(value: Any) -> Any:
    """Return what JSON has for a value that is none of its own, as the service says it of an index of FAISS."""
    return b64encode(value).decode() if isinstance(value, bytes) else to_jsonable_python(value)
