"""Check a filter against the columns of an index, and reduce it to conditions that every backend can evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from cirrus_client.errors import InvalidFilter
from cirrus_client.index.filter_models import And, Compare, Filter, IsIn, IsNull, Not, Or, Value

_MAX_NODES = 200
_ORDERED = ("<", "<=", ">", ">=")

Scalar: TypeAlias = str | bool | int | float | date | datetime
"""A value of a column: an int that the column's type holds, a float for numbers, a date, or a datetime, with a zone if
the column has one."""


class ColumnType(StrEnum):
    """What a filter may compare a column with. OTHER can only be tested for null."""

    STRING = "string"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    DATE = "date"
    TIME = "time"
    OTHER = "other"


@dataclass(frozen=True)
class AllOf:
    """True if all of them are true, and if there are none."""

    inner: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """True if at least one of them is true."""

    inner: tuple[Condition, ...]


@dataclass(frozen=True)
class Negated:
    """True if the condition inside is false."""

    inner: Condition


@dataclass(frozen=True)
class IsEmpty:
    """True if the column is null."""

    column: str


@dataclass(frozen=True)
class Compared:
    """True if the column is not null and compares so. op: ==, !=, <, <=, > or >=."""

    column: str
    op: str
    value: Scalar


@dataclass(frozen=True)
class OneOf:
    """True if the column is not null and equal to one of the values."""

    column: str
    values: tuple[Scalar, ...]


Condition: TypeAlias = AllOf | AnyOf | Negated | IsEmpty | Compared | OneOf


def column_type(type_: pa.DataType) -> ColumnType:
    """Return the type of a column as filters see it."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    tests: tuple[tuple[ColumnType, tuple[Callable[[pa.DataType], bool], ...]], ...] = (
        (ColumnType.STRING, (pa.types.is_string, pa.types.is_large_string)),
        (ColumnType.INTEGER, (pa.types.is_integer,)),
        (ColumnType.NUMBER, (pa.types.is_floating, pa.types.is_decimal)),
        (ColumnType.BOOLEAN, (pa.types.is_boolean,)),
        (ColumnType.DATE, (pa.types.is_date,)),
        (ColumnType.TIME, (pa.types.is_timestamp,)),
    )
    return next((kind for kind, fits in tests if any(fit(type_) for fit in fits)), ColumnType.OTHER)


def unknown_column(name: str, schema: pa.Schema, *, place: str) -> InvalidFilter:
    """Return the error for a column that an index does not have. place: where it was named."""
    known = ", ".join(sorted(schema.names)) or "none"
    return InvalidFilter(f"there is no column {name!r}; there are: {known}", place=place)


def checked(wanted: Filter, schema: pa.Schema) -> Condition:
    """Return what a filter asks of the columns of a schema.

    Raises InvalidFilter, with the place in the tree, if it names a column that is not there, compares one with a value
    of another type, or has too many nodes.
    """
    nodes = _count(wanted)
    if nodes > _MAX_NODES:
        raise InvalidFilter(f"the filter has {nodes} conditions, the limit is {_MAX_NODES}", place="filter")
    return _checked(wanted, schema, "filter")


def _count(node: Filter) -> int:
    inner = node.all_of if isinstance(node, And) else node.any_of if isinstance(node, Or) else ()
    return 1 + sum(map(_count, inner)) + (_count(node.inner) if isinstance(node, Not) else 0)


def _checked(node: Filter, schema: pa.Schema, place: str) -> Condition:
    if isinstance(node, And):
        return AllOf(tuple(_checked(inner, schema, f"{place}.and.{n}") for n, inner in enumerate(node.all_of)))
    if isinstance(node, Or):
        return AnyOf(tuple(_checked(inner, schema, f"{place}.or.{n}") for n, inner in enumerate(node.any_of)))
    if isinstance(node, Not):
        return Negated(_checked(node.inner, schema, f"{place}.not"))
    if node.column not in schema.names:
        raise unknown_column(node.column, schema, place=f"{place}.column")
    if isinstance(node, IsNull):
        empty = IsEmpty(node.column)
        return empty if node.op == "null" else Negated(empty)
    type_ = schema.field(node.column).type
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    if isinstance(node, IsIn):
        equal = [_compared(Compare(column=node.column, op="==", value=value), type_, place) for value in node.value]
        return OneOf(node.column, tuple(one.value for one in equal if isinstance(one, Compared)))
    return _compared(node, type_, place)


def _compared(node: Compare, type_: pa.DataType, place: str) -> Condition:
    kind, value, op = column_type(type_), node.value, node.op
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is ColumnType.STRING and isinstance(value, str):
        return Compared(node.column, op, value)
    if kind is ColumnType.BOOLEAN and isinstance(value, bool) and op not in _ORDERED:
        return Compared(node.column, op, value)
    if kind is ColumnType.NUMBER and is_number:
        return Compared(node.column, op, float(value))
    if kind is ColumnType.INTEGER and is_number:
        return _compared_with_integers(node.column, op, value, type_)
    if kind in (ColumnType.DATE, ColumnType.TIME) and isinstance(value, str):
        return Compared(node.column, op, _moment(value, type_, place))
    what = "can only be tested for null" if kind is ColumnType.OTHER else f"is a {kind}"
    raise InvalidFilter(
        f"column {node.column!r} {what}, and can't be compared with {value!r} by {op}", place=f"{place}.value"
    )


def _compared_with_integers(column: str, op: str, value: Value, type_: pa.DataType) -> Condition:
    """Compare exactly: a cast to floating point would take large integers for their neighbours."""
    never, present = AnyOf(()), Negated(IsEmpty(column))
    number: Any = value
    if number != math.floor(number):
        if op not in _ORDERED:
            return present if op == "!=" else never
        op, number = ("<=", math.floor(number)) if op in ("<", "<=") else (">=", math.ceil(number))
    number = int(number)
    limits = np.iinfo(str(type_))  # its names are NumPy's, like "uint8"
    if not limits.min <= number <= limits.max:
        below_all = number < limits.min
        return present if op == "!=" or op in ((">", ">=") if below_all else ("<", "<=")) else never
    return Compared(column, op, number)


def _moment(value: str, type_: pa.DataType, place: str) -> date | datetime:
    try:
        if pa.types.is_date(type_):
            return date.fromisoformat(value)
        moment = datetime.fromisoformat(value)
        if type_.tz is not None:
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise InvalidFilter(
            f"{value!r} is no {column_type(type_)} in the form of ISO 8601, like 2026-05-31", place=f"{place}.value"
        ) from None
