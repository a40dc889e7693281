"""WebP (RFC 9649): its RIFF chunks. Of an animation, the first frame."""

from __future__ import annotations

import struct

from cirrus_client.errors import InvalidImage
from cirrus_client.image.formats.header import Header, too_many_parts
from cirrus_client.image.formats.orientation import orientation
from cirrus_client.image.limits import MAX_PARTS

_KEPT = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})


def is_webp(image: bytes) -> bool:
    """Return whether bytes begin as a WebP file does."""
    return image[:4] == b"RIFF" and image[8:12] == b"WEBP"


def read(image: bytes) -> Header:
    """Read the chunks. Raises InvalidImage, and struct.error where the file ends too early."""
    view = memoryview(image)
    size = _size(image)
    kept: dict[bytes, memoryview] = {}
    others: dict[bytes, memoryview] = {}
    place = 12
    for _ in range(MAX_PARTS):
        if place + 8 > len(image):
            break
        (length,) = struct.unpack_from("<I", image, place + 4)
        end = place + 8 + length + length % 2
        kind = image[place : place + 4]
        (kept if kind in _KEPT else others).setdefault(kind, view[place:end])
        place = end
    else:
        raise too_many_parts("WebP chunks")
    chunks = tuple(kept.values())
    riff = b"RIFF" + struct.pack("<I", 4 + sum(map(len, chunks))) + b"WEBP"
    exif, xmp = (others[name][8:] if name in others else None for name in (b"EXIF", b"XMP "))
    return Header("WEBP", *size, orientation(exif, xmp), (riff, *chunks))


def _size(image: bytes) -> tuple[int, int]:
    """Return the size of the canvas, or else of the one frame."""
    kind = image[12:16]
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", image, 24)
        return 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", image, 21)
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", image, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise InvalidImage("the WebP image is broken: it does not begin with an image or its header")
