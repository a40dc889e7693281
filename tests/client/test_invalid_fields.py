"""A wrong field is named as the user wrote it, with one sentence of what it should be."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Discriminator, StrictBool, Tag, ValidationError

from cirrus_client.invalid_fields import first_problem


class Leaf(BaseModel, extra="forbid"):
    """A node without further ones."""

    name: str
    value: StrictBool | str | None = None


class Branch(BaseModel):
    """A node with further ones."""

    all: list[Tree]


Tree = Annotated[
    Annotated[Leaf, Tag("leaf")] | Annotated[Branch, Tag("all")],
    Discriminator(lambda node: "all" if "all" in node else "leaf"),
]


class Content(BaseModel):
    """What is read."""

    format: Literal[1]
    given: str | Leaf | list[str | Leaf] = ""
    tree: Tree | None = None


@pytest.mark.parametrize(
    ("content", "field", "problem"),
    [
        ({}, "format", "field 'format': Field required"),
        ({"format": 2}, "format", "field 'format': Input should be 1, found 2"),
        (
            {"format": 1, "tree": {"name": "a", "nmae": 1}},
            "tree.nmae",
            "field 'tree.nmae': there is no such field, found 1",
        ),
        ({"format": 2, "given": 5}, "format", "field 'format': Input should be 1, found 2 (1 more problem)"),
        (
            {"format": 1, "given": {"name": 5}},
            "given.name",
            "field 'given.name': Input should be a valid string, found 5",
        ),
        (
            {"format": 1, "given": ["a", None]},
            "given.1",
            "field 'given.1': Input should be a valid string or an object, found None",
        ),
        (
            {"format": 1, "tree": {"all": [{"name": "a"}, {"all": [{"name": "b", "value": {}}]}]}},
            "tree.all.1.all.0.value",
            "field 'tree.all.1.all.0.value': Input should be a valid boolean or a valid string, found {}",
        ),
        ({"format": 1, "tree": {"all": [{}]}}, "tree.all.0.name", "field 'tree.all.0.name': Field required"),
        ([], None, "its content: Input should be an object, found []"),
    ],
)
def test_a_field_has_the_path_of_what_was_written(content: Any, field: str | None, problem: str) -> None:
    text = json.dumps(content)
    with pytest.raises(ValidationError) as invalid:
        Content.model_validate_json(text)
    assert first_problem(invalid.value, text) == first_problem(invalid.value, content) == (field, problem)


def test_what_is_no_json_has_no_field() -> None:
    with pytest.raises(ValidationError) as invalid:
        Content.model_validate_json("{")
    field, problem = first_problem(invalid.value, "{")
    assert field is None
    assert problem.startswith("it is not JSON: ")


@pytest.mark.slow
def test_many_wrong_items_are_told_as_fast_as_one() -> None:
    """A list of 100,000 took half an hour: the names of kinds were looked for among its places, one by one."""
    content = {"format": 1, "given": [None] * 100_000}
    with pytest.raises(ValidationError) as refused:
        Content.model_validate(content)
    assert first_problem(refused.value, content)[0] == "given.0"
