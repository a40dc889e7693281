"""Parameter names in a file's terms and in ours."""

from __future__ import annotations

import re

_NUMBER = r"(\d+)"


class KeyMap:
    """Pairs of (their prefix, our prefix), the first that fits wins; `{n}` stands for the number of a layer.

    A key that no pair fits has the same name on both sides.
    """

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._to_ours = [(_pattern(theirs), _template(ours)) for theirs, ours in pairs]
        self._to_theirs = [(_pattern(ours), _template(theirs)) for theirs, ours in pairs]

    def ours(self, key: str) -> str:
        """Return our name of a key in a file."""
        return _renamed(key, self._to_ours)

    def theirs(self, key: str) -> str:
        """Return the name in a file of a key of ours."""
        return _renamed(key, self._to_theirs)


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, template in rules:
        if pattern.match(key):
            return pattern.sub(template, key, count=1)
    return key


def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile("^" + re.escape(prefix).replace(re.escape("{n}"), _NUMBER))


def _template(prefix: str) -> str:
    return prefix.replace("{n}", r"\1")
