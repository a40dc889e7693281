"""Describe the columns of a collection, so that a page can offer filters."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cirrus_client.service.filters import ColumnType, column_type
from cirrus_client.service.models import Column

_MOST_VALUES = 50
_LONGEST_VALUE = 100
_RANGED = (ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DATE, ColumnType.TIME)


def described(table: pa.Table) -> list[Column]:
    """Return the type of each column, its values if they are a few strings, and its range if it has one."""
    return [_described(name, table[name]) for name in table.column_names]


def _described(name: str, column: pa.ChunkedArray) -> Column:
    kind = column_type(column.type)
    if kind is ColumnType.STRING:
        return Column(name=name, type=kind, values=_few_values(column))
    if kind in _RANGED:
        low, high = _range(column, kind)
        return Column(name=name, type=kind, low=low, high=high)
    return Column(name=name, type=kind)


def _few_values(column: pa.ChunkedArray) -> list[str] | None:
    plain = pc.cast(column, pa.string())
    values = pc.unique(plain).drop_null().to_pylist()
    if len(values) > _MOST_VALUES or any(len(value) > _LONGEST_VALUE for value in values):
        return None
    return sorted(values)


def _range(column: pa.ChunkedArray, kind: ColumnType) -> tuple[Any, Any]:
    if kind is ColumnType.NUMBER:
        column = pc.cast(column, pa.float64())
        column = column.filter(pc.is_finite(column))
    both = pc.min_max(column).as_py()
    return both["min"], both["max"]
