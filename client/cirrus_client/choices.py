"""Choices that a caller names: a member of an enumeration, or its value as a string."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from cirrus_client.errors import InvalidInput

E = TypeVar("E", bound=StrEnum)


def member(kind: type[E], value: E | str, what: str) -> E:
    """Return the member of an enumeration that a caller gave, itself or as a string. what: its name in an error.

    Raises InvalidInput that lists the members.
    """
    try:
        return kind(value)
    except ValueError:
        raise InvalidInput(f"{what} is {value!r}: give {', '.join(map(repr, map(str, kind)))}") from None
