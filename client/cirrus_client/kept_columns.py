"""The types in which columns of metadata are kept, so that every backend answers the same for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_INT64_DIGITS = 18


def kept_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in the type that is kept.

    Times are kept to the microsecond and decimals as numbers, because filters compare them so. Raises ValueError for
    dates and times that Python can't say: outside the years 1 to 9999, or in a time zone that is not known here.
    """
    type_, kept = column.type, kept_type(column.type)
    try:
        if kept != type_:
            column = column.cast(_with_leaves(type_, _spelled))  # Arrow makes 19.990000000000002 of the decimal 19.99
            column = column.cast(kept, safe=pa.types.is_timestamp(type_) and type_.unit != "ns")
        _check_moments(column)
    except (pa.ArrowException, ArithmeticError, ValueError, KeyError):  # KeyError: an unknown time zone
        raise ValueError(
            f"{type_}, with dates or times outside the years 1 to 9999 or in a time zone that is not known here"
        ) from None
    return column


def kept_type(type_: pa.DataType) -> pa.DataType:
    """Return the type in which values of a type are kept."""
    return _with_leaves(type_, _kept_leaf)


def as_texts(values: Sequence[Any]) -> pa.Array:
    """Return values without a common type as a column of texts."""
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def is_text(type_: pa.DataType) -> bool:
    """Return whether values of a type are texts, however they are stored."""
    kept = kept_type(type_.value_type if pa.types.is_dictionary(type_) else type_)
    return bool(pa.types.is_string(kept) or pa.types.is_large_string(kept))


def _with_leaves(type_: pa.DataType, changed: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type in which the types of single values are changed.

    Lists have no fixed size then: Parquet can't have an empty place among those that do.
    """
    if pa.types.is_dictionary(type_):
        value_type = _with_leaves(type_.value_type, changed)
        return type_ if value_type == type_.value_type else value_type
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        make = pa.large_list if pa.types.is_large_list(type_) else pa.list_
        return make(type_.value_field.with_type(_with_leaves(type_.value_type, changed)))
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_with_leaves(field.type, changed)) for field in type_])
    return changed(type_)


def _kept_leaf(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_decimal(type_):
        return pa.int64() if type_.scale == 0 and type_.precision <= _INT64_DIGITS else pa.float64()
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", type_.tz)
    others = {
        pa.string_view(): pa.string(),
        pa.binary_view(): pa.binary(),
        pa.float16(): pa.float32(),
        pa.date64(): pa.date32(),
        pa.duration("ns"): pa.duration("us"),
        pa.time64("ns"): pa.time64("us"),
    }
    return others.get(type_, type_)


def _spelled(type_: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_decimal(type_) else type_


def _check_moments(column: pa.ChunkedArray) -> None:
    """Raise OverflowError, ValueError or KeyError if a date or a time in a column can't be one of Python's."""
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_):
        pc.min_max(column.cast(type_)).as_py()
    elif pa.types.is_nested(type_) and _has_moments(type_):
        column.to_pylist()


def _has_moments(type_: pa.DataType) -> bool:
    inner = [type_.field(place).type for place in range(type_.num_fields)]
    return pa.types.is_date(type_) or pa.types.is_timestamp(type_) or any(map(_has_moments, inner))
