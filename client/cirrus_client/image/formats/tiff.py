"""TIFF (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf) and BigTIFF: its first directory."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cirrus_client.errors import InvalidImage
from cirrus_client.image.formats.header import Header, too_many_parts
from cirrus_client.image.formats.orientation import UPRIGHT, orientation
from cirrus_client.image.limits import MAX_IMAGE_PIXELS, MAX_PARTS, MAX_TAG_BYTES

SIGNATURES = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")
_WIDTH, _LENGTH, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = 256, 257, 273, 277, 278, 279
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_ORIENTATION, _XMP = 274, 700
_PLANES, _SEPARATE = 284, 2
_OFFSETS_AND_BYTES = frozenset({_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES})
_KEPT = _OFFSETS_AND_BYTES | {
    *(_WIDTH, _LENGTH, _SAMPLES, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH),
    *(258, 259, 262, 266, _PLANES),  # bits per sample, compression, photometric interpretation, fill order
    *(292, 293, 317, 347, *range(512, 522)),  # options of fax, the predictor, and of JPEG
    *(320, 332, 338, 339),  # colour map, inks, extra samples, sample format
    *(529, 530, 531, 532),  # YCbCr
}
_BYTES_OF_KIND = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True)
class _Layout:
    """How a directory is packed. start: where the offset of the first one is written."""

    order: str
    start: int
    offset: str
    count: str
    entry: str

    def number(self, kind: str, data: bytes | memoryview, place: int = 0) -> int:
        value: int = struct.unpack_from(self.order + kind, data, place)[0]
        return value


@dataclass(frozen=True)
class _Entry:
    kind: int
    count: int
    packed: memoryview
    value: memoryview


def read(image: bytes) -> Header:
    """Read the first directory. Raises InvalidImage, and struct.error where the file ends too early.

    The parts have a directory of their own, with the tags that decide the pixels: the file's may have thousands.
    """
    order = "<" if image[:2] == b"II" else ">"
    big = 43 in image[2:4]
    layout = _Layout(order, 8, "Q", "Q", "HHQ8s") if big else _Layout(order, 4, "I", "H", "HHI4s")
    entries = _entries(image, layout)
    width, height = (_integer(entries, tag, layout) for tag in (_WIDTH, _LENGTH))
    if width is None or height is None or entries.keys().isdisjoint((_STRIP_OFFSETS, _TILE_OFFSETS)):
        raise InvalidImage("the TIFF image is broken: it has no width, no length or no image data")
    _check_parts(entries, layout, width, height)
    turned = _integer(entries, _ORIENTATION, layout)
    if turned is None or not 1 <= turned <= 8:
        turned = orientation(None, _data(image, entries[_XMP], layout)) if _XMP in entries else UPRIGHT
    kept = [entries[tag].packed for tag in sorted(_KEPT & entries.keys())]
    view = memoryview(image)
    padding = b"\0" * (-len(image) % 8)
    behind = layout.start + struct.calcsize(layout.offset)
    return Header(
        "TIFF",
        width,
        height,
        turned,
        (
            view[: layout.start],
            struct.pack(order + layout.offset, len(image) + len(padding)),
            view[behind:],
            padding,
            struct.pack(order + layout.count, len(kept)),
            *kept,
            struct.pack(order + layout.offset, 0),
        ),
    )


def _entries(image: bytes, layout: _Layout) -> dict[int, _Entry]:
    """Return the first entry of each tag that is read here."""
    view = memoryview(image)
    start = layout.number(layout.offset, image, layout.start)
    count = layout.number(layout.count, image, start)
    if count > MAX_PARTS:
        raise too_many_parts("TIFF tags")
    form = layout.order + layout.entry
    size = struct.calcsize(form)
    first = start + struct.calcsize(layout.order + layout.count)
    entries: dict[int, _Entry] = {}
    for place in range(first, first + size * count, size):
        tag, kind, length, _ = struct.unpack_from(form, image, place)
        if (tag in _KEPT or tag in (_ORIENTATION, _XMP)) and tag not in entries:
            packed = view[place : place + size]
            value = packed[-struct.calcsize(layout.offset) :]
            entries[tag] = _Entry(kind, length, packed, value)
    return entries


def _integer(entries: dict[int, _Entry], tag: int, layout: _Layout) -> int | None:
    entry = entries.get(tag)
    if entry is None or entry.count != 1 or entry.kind not in _INTEGERS:
        return None
    return layout.number(_INTEGERS[entry.kind], entry.value)


def _data(image: bytes, entry: _Entry, layout: _Layout) -> bytes:
    length = entry.count * _BYTES_OF_KIND.get(entry.kind, 1)
    if length <= len(entry.value):
        return bytes(entry.value)
    start = layout.number(layout.offset, entry.value)
    return image[start : start + min(length, MAX_TAG_BYTES)]


def _check_parts(entries: dict[int, _Entry], layout: _Layout, width: int, height: int) -> None:
    """Refuse tags and tiles that would take more time or memory than the image's own pixels."""
    for tag in _KEPT & entries.keys():
        entry = entries[tag]
        if tag in _OFFSETS_AND_BYTES:
            if entry.count > MAX_PARTS:
                raise too_many_parts("TIFF strips or tiles")
        elif entry.count * _BYTES_OF_KIND.get(entry.kind, 1) > MAX_TAG_BYTES:
            raise InvalidImage(f"the TIFF image's tag {tag} is larger than the limit of {MAX_TAG_BYTES:,} bytes")
    if _TILE_WIDTH in entries:
        part_width, part_height = (_integer(entries, tag, layout) or 1 for tag in (_TILE_WIDTH, _TILE_LENGTH))
    else:
        part_width, part_height = width or 1, min(_integer(entries, _ROWS_PER_STRIP, layout) or height, height) or 1
    columns, rows = -(-width // part_width), -(-height // part_height)
    in_planes = _integer(entries, _PLANES, layout) == _SEPARATE
    planes = _integer(entries, _SAMPLES, layout) or 1 if in_planes else 1
    if columns * rows * planes > MAX_PARTS:
        raise too_many_parts("TIFF strips or tiles")
    if columns * part_width * rows * part_height > 2 * MAX_IMAGE_PIXELS:
        raise InvalidImage(
            f"the TIFF image of {width} x {height} pixels has tiles of {part_width} x {part_height}, which are more "
            "pixels than twice the limit of an image"
        )
