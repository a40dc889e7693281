"""HEIF and AVIF (ISO/IEC 23008-12): the size that the container claims.

Unlike those of other formats, the file goes to the decoder whole: libheif and libavif look for its parts themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cirrus_client.errors import InvalidImage
from cirrus_client.image.formats.header import Header, too_many_parts
from cirrus_client.image.formats.orientation import UPRIGHT
from cirrus_client.image.limits import MAX_PARTS

_AV1 = frozenset({b"avif", b"avis"})
_HEVC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def is_heif(image: bytes) -> bool:
    """Return whether bytes begin as a HEIF or AVIF file does."""
    return image[4:8] == b"ftyp" and image[8:12] in _AV1 | _HEVC


def read(image: bytes) -> Header:
    """Read the largest size of any image in the file. Raises InvalidImage, and struct.error where the file ends early.

    The orientation is left to the decoder.
    """
    view = memoryview(image)
    boxes = dict(_boxes(view))
    brands = bytes(boxes[b"ftyp"])
    properties = dict(_boxes(dict(_boxes(boxes.get(b"meta", view[:0])[4:])).get(b"iprp", view[:0])))
    sizes = [
        struct.unpack_from(">II", content, 4)
        for kind, content in _boxes(properties.get(b"ipco", view[:0]))
        if kind == b"ispe"
    ]
    if not sizes:
        raise InvalidImage("the HEIF image is broken: it does not say its size")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    compatible = {brands[place : place + 4] for place in (0, *range(8, len(brands), 4))}
    return Header("AVIF" if compatible & _AV1 else "HEIF", width, height, UPRIGHT, (view,))


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the boxes in a box: their kinds and what is in them."""
    place = 0
    for _ in range(MAX_PARTS):
        if place + 8 > len(content):
            return
        size, kind = struct.unpack_from(">I4s", content, place)
        start = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, place + 8)
            start = 16
        end = place + size if size else len(content)
        if end < place + start:
            raise InvalidImage("the HEIF image is broken: a box is shorter than its header")
        yield kind, content[place + start : end]
        place = end
    raise too_many_parts("HEIF boxes")
