"""Evaluate a filter over the columns of an index. Nothing in it is ever evaluated as text."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cirrus_client.errors import InvalidFilter
from cirrus_client.service.filter_models import And, Compare, Filter, IsIn, IsNull, Not, Or

Mask = NDArray[np.bool_]
"""Whether each item of an index is in a filter, bool [N]."""

_MAX_NODES = 200
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


class ColumnType(StrEnum):
    """What a filter may compare a column with. OTHER can only be tested for null."""

    STRING = "string"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    DATE = "date"
    TIME = "time"
    OTHER = "other"


def column_type(type_: pa.DataType) -> ColumnType:
    """Return the type of a column as filters see it."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    tests = (
        (ColumnType.STRING, (pa.types.is_string, pa.types.is_large_string)),
        (ColumnType.INTEGER, (pa.types.is_integer,)),
        (ColumnType.NUMBER, (pa.types.is_floating, pa.types.is_decimal)),
        (ColumnType.BOOLEAN, (pa.types.is_boolean,)),
        (ColumnType.DATE, (pa.types.is_date,)),
        (ColumnType.TIME, (pa.types.is_timestamp,)),
    )
    return next((kind for kind, fits in tests if any(fit(type_) for fit in fits)), ColumnType.OTHER)


def matching(table: pa.Table, wanted: Filter) -> Mask:
    """Return which rows of a table are in a filter, bool [N].

    Raises InvalidFilter, with the place in the tree, if it names a column that is not there, compares one with a value
    of another type, or has too many nodes.
    """
    nodes = _count(wanted)
    if nodes > _MAX_NODES:
        raise InvalidFilter(f"the filter has {nodes} conditions, the limit is {_MAX_NODES}", place="filter")
    return _evaluated(table, wanted, "filter")


def _count(node: Filter) -> int:
    inner = node.all_of if isinstance(node, And) else node.any_of if isinstance(node, Or) else ()
    return 1 + sum(map(_count, inner)) + (_count(node.inner) if isinstance(node, Not) else 0)


def _evaluated(table: pa.Table, node: Filter, place: str) -> Mask:
    if isinstance(node, And):
        mask = np.ones(table.num_rows, dtype=np.bool_)
        for number, inner in enumerate(node.all_of):
            mask &= _evaluated(table, inner, f"{place}.and.{number}")
        return mask
    if isinstance(node, Or):
        mask = np.zeros(table.num_rows, dtype=np.bool_)
        for number, inner in enumerate(node.any_of):
            mask |= _evaluated(table, inner, f"{place}.or.{number}")
        return mask
    if isinstance(node, Not):
        return ~_evaluated(table, node.inner, f"{place}.not")
    column = _column(table, node.column, place)
    if isinstance(node, IsNull):
        empty = _mask(pc.is_null(column))
        return empty if node.op == "null" else ~empty
    if isinstance(node, IsIn):
        mask = np.zeros(table.num_rows, dtype=np.bool_)
        for value in node.value:
            mask |= _compared(column, Compare(column=node.column, op="==", value=value), place)
        return mask
    return _compared(column, node, place)


def _column(table: pa.Table, name: str, place: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        known = ", ".join(sorted(table.column_names)) or "none"
        raise InvalidFilter(f"there is no column {name!r}; there are: {known}", place=f"{place}.column")
    column = table[name]
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _compared(column: pa.ChunkedArray, node: Compare, place: str) -> Mask:
    """Compare a column with a value of its type."""
    kind, value, op = column_type(column.type), node.value, node.op
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is ColumnType.STRING and isinstance(value, str):
        return _mask(_COMPARE[op](column, value))
    if kind is ColumnType.BOOLEAN and isinstance(value, bool) and op in ("==", "!="):
        return _mask(_COMPARE[op](column, value))
    if kind is ColumnType.NUMBER and is_number:
        return _mask(_COMPARE[op](pc.cast(column, pa.float64()), float(value)))
    if kind is ColumnType.INTEGER and is_number:
        return _compared_with_integers(column, op, value)
    if kind in (ColumnType.DATE, ColumnType.TIME) and isinstance(value, str):
        return _mask(_COMPARE[op](*_moments(column, kind, value, place)))
    what = "can only be tested for null" if kind is ColumnType.OTHER else f"is a {kind}"
    raise InvalidFilter(
        f"column {node.column!r} {what}, and can't be compared with {value!r} by {op}", place=f"{place}.value"
    )


def _compared_with_integers(column: pa.ChunkedArray, op: str, value: Any) -> Mask:
    """Compare exactly: a cast to floating point would take large integers for their neighbours."""
    if value != math.floor(value):
        if op in ("==", "!="):
            present = ~_mask(pc.is_null(column))
            return present if op == "!=" else np.zeros(len(column), dtype=np.bool_)
        op, value = ("<=", math.floor(value)) if op in ("<", "<=") else (">=", math.ceil(value))
    value = int(value)
    limits = np.iinfo(str(column.type))  # its names are NumPy's, like "uint8"
    if not limits.min <= value <= limits.max:
        below_all = value < limits.min
        true = op == "!=" or op in ((">", ">=") if below_all else ("<", "<="))
        return ~_mask(pc.is_null(column)) if true else np.zeros(len(column), dtype=np.bool_)
    return _mask(_COMPARE[op](column, pa.scalar(value, column.type)))


def _moments(column: pa.ChunkedArray, kind: ColumnType, value: str, place: str) -> tuple[Any, Any]:
    """Return a column of dates or times and a value as moments in microseconds that can be compared."""
    try:
        if kind is ColumnType.DATE:
            return pc.cast(column, pa.date32()), pa.scalar(date.fromisoformat(value), pa.date32())
        moment = datetime.fromisoformat(value)
        zoned = column.type.tz is not None
        if moment.tzinfo is None and zoned:
            moment = moment.replace(tzinfo=UTC)
        if moment.tzinfo is not None and not zoned:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
        of_column = pa.timestamp("us", column.type.tz)
        return pc.cast(column, of_column, safe=False), pa.scalar(moment, of_column)
    except (ValueError, OverflowError, pa.ArrowException):
        raise InvalidFilter(
            f"{value!r} is no {kind} in the form of ISO 8601, like 2026-05-31", place=f"{place}.value"
        ) from None


def _mask(found: pa.ChunkedArray) -> Mask:
    mask: Mask = pc.fill_null(found, False).to_numpy(zero_copy_only=False).astype(np.bool_)
    return mask
