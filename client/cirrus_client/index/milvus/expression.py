"""Write a filter in Milvus's language of expressions.

In Milvus a comparison with null is neither true nor false, and so is its negation. In a filter of Cirrus it is false,
and its negation true. So `not` is moved down to the comparisons, where nulls are added to what it lets through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from cirrus_client.index.conditions import (
    AllOf,
    AnyOf,
    Compared,
    Condition,
    IsEmpty,
    Negated,
    Scalar,
)
from cirrus_client.index.milvus.fields import PK, Field

_TRUE = f"{PK} >= 0"
_FALSE = f"{PK} < 0"
_LEAST = -(2**63)
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})


def expression(condition: Condition, fields: Mapping[str, Field]) -> str:
    """Return the expression that is true where a condition is. fields: by the names of their columns."""
    return _written(condition, fields, true=True)


def text_literal(text: str) -> str:
    """Return a text as a literal of an expression. What Milvus would read otherwise is escaped, and nothing else."""
    return f'"{text.translate(_ESCAPED)}"'


def without_values(field: str, values: Iterable[Any]) -> str:
    """Return the expression that is true where a field has none of some stored values.

    Zero, infinity and NaN are left in: the first is two values that compare as one, and the others have no literal.
    """
    known = [value for value in values if value is not None]
    plain = [value for value in known if not isinstance(value, float) or (value != 0 and math.isfinite(value))]
    return f"({field} is null or not ({_membership(field, plain)}))"


def _written(node: Condition, fields: Mapping[str, Field], *, true: bool) -> str:
    """Return the expression for a condition, or for its negation."""
    if isinstance(node, Negated):
        return _written(node.inner, fields, true=not true)
    if isinstance(node, AllOf | AnyOf):
        every = isinstance(node, AllOf) is true
        inner = [_written(one, fields, true=true) for one in node.inner]
        return _joined(" and " if every else " or ", inner) or (_TRUE if every else _FALSE)
    field = fields[node.column].field
    if isinstance(node, IsEmpty):
        return f"{field} is null" if true else f"{field} is not null"
    if isinstance(node, Compared):
        compared = _comparison(field, node.op, node.value)
    else:
        compared = _membership(field, node.values)
    return compared if true else f"({field} is null or not ({compared}))"


def _joined(word: str, inner: list[str]) -> str:
    return f"({word.join(inner)})" if len(inner) > 1 else "".join(inner)


def _membership(field: str, values: Sequence[Scalar]) -> str:
    """Return the expression for one of some values.

    Zero is compared by itself, because `in` tells 0.0 from -0.0, and so is what has no plain literal.
    """
    alone = [value for value in values if value == 0 or value == _LEAST]
    listed = [_literal(value) for value in values if value not in alone]
    parts = [f"{field} in [{', '.join(listed)}]"] if listed else []
    return _joined(" or ", parts + [_comparison(field, "==", value) for value in alone]) or _FALSE


def _comparison(field: str, op: str, value: Scalar) -> str:
    return f"{field} {op} {_literal(value)}"


def _literal(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return text_literal(value)
    if isinstance(value, datetime):
        epoch = datetime(1970, 1, 1, tzinfo=None if value.tzinfo is None else UTC)
        return str((value - epoch) // timedelta(microseconds=1))
    if isinstance(value, date):
        return str((value - date(1970, 1, 1)).days)
    return f"({_LEAST + 1} - 1)" if value == _LEAST and isinstance(value, int) else repr(value)
