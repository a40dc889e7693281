"""Describe the columns of an index's items, so that a page can offer filters, and tell their values apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cirrus_client.errors import InvalidFilter
from cirrus_client.index.conditions import ColumnType, column_type
from cirrus_client.records import Record

_MOST_VALUES = 50
_LONGEST_VALUE = 100
_RANGED = (ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DATE, ColumnType.TIME)


class ColumnSummary(Record):
    """What a column holds. values: its strings, if they are few. low, high: its range, if it has one."""

    name: str
    type: ColumnType
    values: list[str] | None = None
    low: Any = None
    high: Any = None


def described(table: pa.Table) -> list[ColumnSummary]:
    """Return the type of each column, its values if they are a few strings, and its range if it has one."""
    return [_described(name, table[name]) for name in table.column_names]


def numbered(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the number of each place's value in a column, int64 [n]; -1 where it is null.

    Raises InvalidFilter, with the place "unique", if the values can't be told apart.
    """
    if not len(column):
        return np.empty(0, dtype=np.int64)  # Arrow makes no dictionary of no dates
    try:
        encoded = pc.dictionary_encode(column).combine_chunks()
    except pa.ArrowException:
        raise InvalidFilter(
            f"the values of a column of type {column.type} can't be told apart", place="unique"
        ) from None
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    numbers: NDArray[np.int64] = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return numbers


def _described(name: str, column: pa.ChunkedArray) -> ColumnSummary:
    kind = column_type(column.type)
    if kind is ColumnType.STRING:
        return ColumnSummary(name=name, type=kind, values=_few_values(column))
    if kind in _RANGED:
        low, high = _range(column, kind)
        return ColumnSummary(name=name, type=kind, low=low, high=high)
    return ColumnSummary(name=name, type=kind)


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
