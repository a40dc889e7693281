"""Say which field of what was read is wrong, and why, in one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

_LONGEST_VALUE = 60
_WISH = "Input should be "

Place = tuple[str | int, ...]


def first_problem(error: ValidationError, content: object = None, *, noun: str = "field") -> tuple[str | None, str]:
    """Return the name of the first wrong field (None: it is all of it, or no JSON), and a description of the problem.

    content: what was validated, as JSON text or its values. With it, a field that may be of several kinds has one
    problem, that it is none of them, and of its kinds the one that fits furthest is told. noun: what the description
    calls a field.
    """
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return None, f"it is not JSON: {problems[0]['ctx']['error']}{_and_more(len(problems) - 1)}"
    values = _values(content)
    places = [_place(problem["loc"], problem["type"], values) for problem in problems]
    place = max((one for one in places if one[: len(places[0])] == places[0]), key=len)
    alike = [problem for problem, one in zip(problems, places, strict=True) if one == place]
    others = len({one for one in places if one != place[: len(one)]})
    field = ".".join(map(str, place)) or None
    where = "its content" if field is None else f"{noun} '{field}'"
    found = "" if alike[0]["type"] == "missing" else f", found {_shortened(alike[0]['input'])}"
    messages = [
        f"there is no such {noun}" if problem["type"] == "extra_forbidden" else problem["msg"] for problem in alike
    ]
    return field, f"{where}: {_either(messages)}{found}{_and_more(others)}"


def _place(location: Sequence[str | int], kind: str, values: Any) -> Place:
    """Return the keys and positions that lead to a field, without the names that pydantic has for kinds of it."""
    if values is None:
        return tuple(location)
    place: list[str | int] = []
    for number, part in enumerate(location):
        if _has(values, part):
            values = values[part]
        elif kind != "missing" or number + 1 < len(location):
            continue
        place.append(part)
    return tuple(place)


def _has(values: Any, part: str | int) -> bool:
    if isinstance(values, list):
        return isinstance(part, int) and 0 <= part < len(values)
    return isinstance(values, Mapping) and part in values


def _either(messages: Sequence[str]) -> str:
    wishes = list(dict.fromkeys(message.removeprefix(_WISH) for message in messages if message.startswith(_WISH)))
    return _WISH + " or ".join(wishes) if wishes else messages[0]


def _values(content: object) -> Any:
    if not isinstance(content, str | bytes):
        return content
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _and_more(count: int) -> str:
    return f" ({count} more {'problem' if count == 1 else 'problems'})" if count else ""


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
