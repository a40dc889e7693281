"""Evaluate a filter over a table in memory. Nothing in it is ever evaluated as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cirrus_client.index.conditions import (
    AllOf,
    AnyOf,
    ColumnType,
    Compared,
    Condition,
    IsEmpty,
    Negated,
    checked,
    column_type,
)
from cirrus_client.index.filter_models import Filter

Mask = NDArray[np.bool_]
"""Whether each item of an index is in a filter, bool [N]."""

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def matching(table: pa.Table, wanted: Filter) -> Mask:
    """Return which rows of a table are in a filter, bool [N]. Raises InvalidFilter as `checked` does."""
    return _evaluated(table, checked(wanted, table.schema))


def _evaluated(table: pa.Table, node: Condition) -> Mask:
    if isinstance(node, AllOf):
        mask = np.ones(table.num_rows, dtype=np.bool_)
        for inner in node.inner:
            mask &= _evaluated(table, inner)
        return mask
    if isinstance(node, AnyOf):
        mask = np.zeros(table.num_rows, dtype=np.bool_)
        for inner in node.inner:
            mask |= _evaluated(table, inner)
        return mask
    if isinstance(node, Negated):
        return ~_evaluated(table, node.inner)
    column = table[node.column]
    if isinstance(node, IsEmpty):
        return _mask(pc.is_null(column))
    column = _comparable(column)
    if isinstance(node, Compared):
        return _mask(_COMPARE[node.op](column, pa.scalar(node.value, column.type)))
    mask = np.zeros(table.num_rows, dtype=np.bool_)
    for value in node.values:
        mask |= _mask(pc.equal(column, pa.scalar(value, column.type)))
    return mask


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with the type that its values are compared in: float64, days, microseconds, or its own."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    kind = column_type(column.type)
    if kind is ColumnType.NUMBER:
        return pc.cast(column, pa.float64())
    if kind is ColumnType.DATE:
        return pc.cast(column, pa.date32())
    if kind is ColumnType.TIME:
        return pc.cast(column, pa.timestamp("us", column.type.tz), safe=False)
    return column


def _mask(found: pa.ChunkedArray) -> Mask:
    mask: Mask = pc.fill_null(found, False).to_numpy(zero_copy_only=False).astype(np.bool_)
    return mask
