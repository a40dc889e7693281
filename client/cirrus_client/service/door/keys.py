"""API keys: read from a file or the environment, compared in constant time, named in logs by their ids."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cirrus_client.errors import ServerError

_LINE = re.compile(r"(?P<id>[A-Za-z0-9._-]{1,64})=(?P<key>[\x21-\x7e]{16,512})")
_WANTED = "expected ID=KEY, an id of letters and digits and a key of 16 to 512 visible ASCII characters"


class Keys:
    """The API keys of a service. Only their sha256 is kept. Threads may share it."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """Take keys by their ids."""
        self._digests = {name: _digest(key) for name, key in keys.items()}

    def __len__(self) -> int:
        return len(self._digests)

    def id_of(self, key: str) -> str | None:
        """Return the id of a key, or None if it is none. The time does not depend on how much of it is right."""
        presented, found = _digest(key), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(presented, digest):
                found = name
        return found


def read_keys(file: Path | None, listed: str | None) -> Keys:
    """Read API keys. file: a line ID=KEY per key; lines that start with # and empty ones are skipped. listed: the same,
    separated by commas.

    Raises ServerError, which names the line and no key, for anything else, for an id that is there twice, and for a
    file without a key.
    """
    keys: dict[str, str] = {}
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ServerError(f"API keys {file}: {reason}") from None
        _add(keys, lines, f"API keys {file}, line")
        if not keys:
            raise ServerError(f"API keys {file}: it has no key; {_WANTED}")
    _add(keys, [] if listed is None else listed.split(","), "API keys of --api-keys, entry")
    return Keys(keys)


def _add(keys: dict[str, str], lines: Iterable[str], where: str) -> None:
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ServerError(f"{where} {number}: {_WANTED}")
        if found["id"] in keys:
            raise ServerError(f"{where} {number}: the id {found['id']} is there twice")
        keys[found["id"]] = found["key"]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
