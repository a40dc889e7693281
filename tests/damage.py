"""Damage to stored files, as a disk or a person does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from cirrus_client.files import sha256_of_file
from cirrus_client.records import Record, write_sealed


class AnyRecord(Record):
    """A record with any fields."""

    model_config = ConfigDict(extra="allow")


def rewrite_record(path: Path, **changes: Any) -> None:
    """Change fields of a sealed record, and give it the checksum of its new content."""
    fields = json.loads(path.read_text()) | changes
    del fields["checksum"]
    write_sealed(path, AnyRecord(**fields))


def replace_in_index(root: Path, name: str, source: Path) -> None:
    """Put another file in the place of an index's file, with its right checksum in the manifest."""
    (root / name).write_bytes(source.read_bytes())
    files = json.loads((root / "index.json").read_text())["files"]
    rewrite_record(root / "index.json", files=files | {name: sha256_of_file(root / name)})


def flip_a_bit(path: Path, place: int) -> None:
    """Flip a bit of a file. place: a byte, counted from the start."""
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0x10
    path.write_bytes(bytes(content))
