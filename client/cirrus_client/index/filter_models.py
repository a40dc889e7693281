"""The JSON form of a filter: a small tree, checked against the types of a collection's columns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypeAliasType

from cirrus_client.errors import InvalidFilter
from cirrus_client.invalid_fields import first_problem

_COLUMN = Field(max_length=200)
_NAMES_OF_OPERATORS: list[JsonValue] = ["EQUAL", "NOT_EQUAL", "LESS", "AT_MOST", "GREATER", "AT_LEAST"]
Value = TypeAliasType(
    "Value",
    StrictBool
    | Annotated[StrictInt, Field(ge=-(2**64), lt=2**64)]
    | Annotated[StrictFloat, Field(allow_inf_nan=False)]
    | Annotated[str, Field(max_length=1_000)],
)
"""What a column is compared with. It has a name, by which generated clients call it."""


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_alias=True, validate_by_name=True)


class Compare(_Node):
    """`{"column": "price", "op": "<", "value": 50}`. A date or a time is text in the form of ISO 8601."""

    column: str = _COLUMN
    op: Literal["==", "!=", "<", "<=", ">", ">="] = Field(json_schema_extra={"x-enum-varnames": _NAMES_OF_OPERATORS})
    value: Value


class IsIn(_Node):
    """`{"column": "brand", "op": "in", "value": ["a", "b"]}`."""

    column: str = _COLUMN
    op: Literal["in"]
    value: list[Value] = Field(max_length=1_000)


class IsNull(_Node):
    """`{"column": "price", "op": "null"}`, or "not_null"."""

    column: str = _COLUMN
    op: Literal["null", "not_null"]


class And(_Node):
    """`{"and": [...]}`: all of them. An empty list is true."""

    all_of: list[Filter] = Field(alias="and", max_length=100)


class Or(_Node):
    """`{"or": [...]}`: at least one of them. An empty list is false."""

    any_of: list[Filter] = Field(alias="or", max_length=100)


class Not(_Node):
    """`{"not": ...}`: the items for which the filter inside is false."""

    inner: Filter = Field(alias="not")


def _kind(node: Any) -> str | None:
    """Return which node of the tree a value is meant to be, so that one alone is tried."""
    if isinstance(node, _Node):
        return {And: "and", Or: "or", Not: "not", IsIn: "in", IsNull: "null"}.get(type(node), "compare")
    if not isinstance(node, dict):
        return None
    for name in ("and", "or", "not"):
        if name in node:
            return name
    op = node.get("op")
    return "in" if op == "in" else "null" if op in ("null", "not_null") else "compare"


Filter = TypeAliasType(
    "Filter",
    Annotated[
        Annotated[And, Tag("and")]
        | Annotated[Or, Tag("or")]
        | Annotated[Not, Tag("not")]
        | Annotated[Compare, Tag("compare")]
        | Annotated[IsIn, Tag("in")]
        | Annotated[IsNull, Tag("null")],
        Discriminator(
            _kind,
            custom_error_type="no_filter",
            custom_error_message='it must be an object, like {"column": "price", "op": "<", "value": 50}',
        ),
    ],
)
"""A filter. A comparison with an empty place is false, whatever the operator."""

for _model in (And, Or, Not):
    _model.model_rebuild()

_FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)


def read_filter(tree: Any) -> Filter:
    """Return the filter that a tree of JSON's types is. Raises InvalidFilter, with its place, if it is none."""
    try:
        return _FILTER.validate_python(tree)
    except ValidationError as error:
        field, problem = first_problem(error, tree)
        place = "filter" if field is None else f"filter.{field}"
        raise InvalidFilter(f"it is no filter: {problem}", place=place) from None
