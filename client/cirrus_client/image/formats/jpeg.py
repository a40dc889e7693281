"""JPEG (ITU-T T.81): its segments up to the first scan, and the number of its scans."""

from __future__ import annotations

import re
import struct

from cirrus_client.errors import InvalidImage
from cirrus_client.image.formats.header import Header, too_many_parts
from cirrus_client.image.formats.orientation import orientation
from cirrus_client.image.limits import MAX_PARTS, MAX_SCANNED_PIXELS, MAX_SCANS

SIGNATURE = b"\xff\xd8\xff"
_TEM, _RESTARTS, _START, _END, _SCAN = 0x01, range(0xD0, 0xD8), 0xD8, 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF_OR_XMP = 0xE1
_KEPT_OF_APPLICATIONS = {(0xE0, b"JFIF\0"), (0xEE, b"Adobe")}  # they say how the channels are coded
_KEPT = frozenset({*range(0xC0, 0xD0), *range(0xDB, 0xE0)})
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# within a scan, FF is followed by 00, a restart marker or a fill byte
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def read(image: bytes) -> Header:
    """Read the segments before the first scan. Raises InvalidImage, and struct.error where the file ends too early."""
    view = memoryview(image)
    parts: list[bytes | memoryview] = [view[:2]]
    size: tuple[int, int] | None = None
    channels = 0
    exif: memoryview | None = None
    xmp: memoryview | None = None
    place = 2
    for _ in range(MAX_PARTS):
        place = image.find(b"\xff", place)
        marker = image[place + 1] if 0 <= place < len(image) - 1 else _END
        if marker in (_END, _SCAN):
            break
        if marker == 0xFF:
            place += 1
            continue
        if marker in (0, _TEM, _START) or marker in _RESTARTS:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", image, place + 2)
        content = view[place + 4 : place + 2 + length]
        if marker in _FRAMES and size is None:
            height, width, channels = struct.unpack_from(">HHB", content, 1)
            size = width, height
        start = bytes(content[: len(_XMP)])
        if marker == _EXIF_OR_XMP and exif is None and start.startswith(b"Exif\0\0"):
            exif = content
        elif marker == _EXIF_OR_XMP and xmp is None and start == _XMP:
            xmp = content
        if marker in _KEPT or (marker, start[:5]) in _KEPT_OF_APPLICATIONS:
            parts.append(view[place : place + 2 + length])
        place += 2 + length
    else:
        raise too_many_parts("JPEG segments")
    if marker == _END or size is None:
        raise InvalidImage("the JPEG image is broken: it has no image data")
    _check_scans(image, place, size[0] * size[1])
    return Header("JPEG", *size, orientation(exif, xmp), (*parts, view[place:]), channels)


def _check_scans(image: bytes, first: int, pixels: int) -> None:
    limit = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(pixels, 1))
    # counting two bytes is fast, and exact but for what looks like a scan in other segments or behind the image
    if image.count(b"\xff\xda", first) > limit and _has_more_scans(image, first, limit):
        raise InvalidImage(f"the JPEG image has more scans than the limit of {limit} for {pixels:,} pixels")


def _has_more_scans(image: bytes, place: int, limit: int) -> bool:
    scans = segments = 0
    while scans <= limit and segments <= MAX_PARTS:
        found = _MARKER.search(image, place)
        if found is None or image[found.end() - 1] == _END:
            return False
        place = found.end()
        marker = image[place - 1]
        scans, segments = scans + (marker == _SCAN), segments + 1
        if marker not in (_TEM, _START):
            place += int.from_bytes(image[place : place + 2], "big")
    return True
