"""How an image is to be turned to be upright: the orientation in EXIF data, or else in XMP."""

from __future__ import annotations

import re
import struct

from cirrus_client.image.limits import MAX_TAG_BYTES

UPRIGHT = 1
_TAG, _SHORT, _LONG = 0x0112, 3, 4
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def orientation(exif: bytes | memoryview | None, xmp: bytes | memoryview | None) -> int:
    """Return EXIF's orientation, 1 to 8, or else XMP's. It is 1 where neither has one, or both are damaged.

    exif: a TIFF structure, with or without the mark "Exif" before it. xmp: an XML packet.
    """
    found = None if exif is None else _in_exif(bytes(exif[:MAX_TAG_BYTES]))
    if found is None and xmp is not None and (match := _XMP.search(bytes(xmp[:MAX_TAG_BYTES]))):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else UPRIGHT


def _in_exif(exif: bytes) -> int | None:
    """Return the tag's number in the first directory. What its other entries point at is never read."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (place,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, place)
        for start in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, start)
            if tag == _TAG and kind in (_SHORT, _LONG):
                value: int = struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'I'}", tiff, start + 8)[0]
                return value
    except struct.error:  # the data end too early
        pass
    return None
