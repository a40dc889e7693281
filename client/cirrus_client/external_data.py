"""Find the files that an ONNX file loads its weights from, without the onnx package.

An engine opens these files by the names in the ONNX file. A contract that does not list them does not bind the model.
Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_MODEL = "model"
_CHILDREN: dict[str, dict[int, str]] = {
    _MODEL: {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""A message of onnx.proto3 -> the fields in which an external file may be named -> their messages."""

_KEY, _VALUE = 1, 2
_LOCATION = b"location"
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


def external_files(path: Path) -> frozenset[str]:
    """Return the names of the files in which an ONNX file keeps tensors, as written in it: relative to its folder.

    Raises ValueError if the file is no ONNX model.
    """
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        pending = [(_MODEL, 0, len(content))]
        found: set[str] = set()
        while pending:
            message, start, end = pending.pop()
            if message == "entry":
                found |= _location(content, start, end)
                continue
            for field, first, last in _fields(content, start, end):
                if field in _CHILDREN[message]:
                    pending.append((_CHILDREN[message][field], first, last))
        return frozenset(found)


def _location(content: mmap.mmap, start: int, end: int) -> set[str]:
    pair = {field: content[first:last] for field, first, last in _fields(content, start, end)}
    return {pair.get(_VALUE, b"").decode()} if pair.get(_KEY) == _LOCATION else set()


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the length-delimited fields of a message. Raises ValueError if it has others."""
    place = start
    while place < end:
        tag, place = _varint(content, place, end)
        kind = tag & 7
        if kind == _VARINT:
            _, place = _varint(content, place, end)
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        elif kind == _LENGTH:
            length, place = _varint(content, place, end)
            yield tag >> 3, place, place + length
            place += length
        else:
            raise ValueError(f"it is no ONNX model: a field of kind {kind} at byte {place}")
        if place > end:
            raise ValueError(f"it is no ONNX model: a field ends behind its message, at byte {place}")


def _varint(content: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = 0
    for position in range(_LONGEST_VARINT):
        if place + position >= end:
            break
        byte = content[place + position]
        value |= (byte & 0x7F) << (7 * position)
        if not byte & 0x80:
            return value, place + position + 1
    raise ValueError(f"it is no ONNX model: a number without an end at byte {place}")
