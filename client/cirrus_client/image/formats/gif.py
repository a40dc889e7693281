"""GIF (https://www.w3.org/Graphics/GIF/spec-gif89a.txt): its blocks up to the first frame."""

from __future__ import annotations

import struct

from cirrus_client.errors import InvalidImage
from cirrus_client.image.formats.header import Header, too_many_parts
from cirrus_client.image.formats.orientation import UPRIGHT
from cirrus_client.image.limits import MAX_PARTS

SIGNATURES = (b"GIF87a", b"GIF89a")
_EXTENSION, _IMAGE, _TRAILER, _GRAPHIC_CONTROL = 0x21, 0x2C, 0x3B, 0xF9


def read(image: bytes) -> Header:
    """Read the blocks before the first frame's data. Raises InvalidImage, and IndexError or struct.error at the end."""
    view = memoryview(image)
    width, height, flags = struct.unpack_from("<HHB", image, 6)
    place = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    screen, control = view[:place], view[:0]
    left_to_read = MAX_PARTS
    while image[place] != _IMAGE:
        start, kind = place, image[place]
        if kind == _TRAILER:
            raise InvalidImage("the GIF image is broken: it has no frame")
        if kind == _EXTENSION:
            label, place = image[place + 1], place + 2
            while image[place] and left_to_read:
                place, left_to_read = place + 1 + image[place], left_to_read - 1
            if label == _GRAPHIC_CONTROL:
                control = view[start : place + 1]
        place, left_to_read = place + 1, left_to_read - 1
        if left_to_read < 0:
            raise too_many_parts("GIF blocks")
    left, top, frame_width, frame_height = struct.unpack_from("<4H", image, place + 1)
    size = max(width, left + frame_width), max(height, top + frame_height)
    return Header("GIF", *size, UPRIGHT, (screen, control, view[place:]))
