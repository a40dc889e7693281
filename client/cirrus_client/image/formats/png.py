"""PNG (https://www.w3.org/TR/png/): its chunks. Of an animation, the default image."""

from __future__ import annotations

import struct
import zlib

from cirrus_client.errors import InvalidImage
from cirrus_client.image.formats.header import Header, too_many_parts
from cirrus_client.image.formats.orientation import orientation
from cirrus_client.image.limits import MAX_PARTS, MAX_TAG_BYTES

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_GREY, _TRUECOLOUR = 0, 2
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_XMP, _IMAGE_MAGICKS_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"


def read(image: bytes) -> Header:
    """Read the chunks. Raises InvalidImage, and struct.error where the file ends too early."""
    view = memoryview(image)
    if image[12:16] != b"IHDR":
        raise InvalidImage("the PNG image is broken: it does not begin with its header")
    width, height, depth, colour = struct.unpack_from(">IIBB", image, 16)
    parts: list[bytes | memoryview] = [view[:8]]
    clear: int | tuple[int, int, int] | None = None
    exif: bytes | memoryview | None = None
    xmp: bytes | None = None
    place = 8
    for _ in range(MAX_PARTS):
        if place + 8 > len(image):
            break
        (length,) = struct.unpack_from(">I", image, place)
        kind, content = image[place + 4 : place + 8], view[place + 8 : place + 8 + length]
        if kind == b"tRNS":
            clear = _clear(depth, colour, content)
        if kind in _KEPT:
            parts.append(view[place : place + 12 + length])
        elif kind == b"eXIf":
            exif = content
        elif kind in _TEXTS:
            keyword, _, text = bytes(content[:MAX_TAG_BYTES]).partition(b"\0")
            if keyword == _XMP and kind == b"iTXt":
                xmp = _international(text)
            elif keyword == _IMAGE_MAGICKS_EXIF and exif is None:
                exif = _hexadecimal(_inflated(text[1:]) if kind == b"zTXt" else text)
        place += 12 + length
        if kind == b"IEND":
            break
    else:
        raise too_many_parts("PNG chunks")
    return Header("PNG", width, height, orientation(exif, xmp), tuple(parts), clear=clear)


def _clear(depth: int, colour: int, content: memoryview) -> int | tuple[int, int, int] | None:
    """Return what `Header.clear` says. Pillow compares levels of eight bits with a key of another depth."""
    if colour == _GREY and depth in (1, 2, 4):
        level: int = struct.unpack_from(">H", content)[0]
        return level * 255 // ((1 << depth) - 1)
    if colour == _TRUECOLOUR and depth == 16:
        red, green, blue = struct.unpack_from("BxBxBx", content)
        return red, green, blue
    return None


def _international(text: bytes) -> bytes:
    """Return the text of an iTXt chunk behind its keyword: flag, method, language, translated keyword, text."""
    compressed, rest = text[:1] == b"\1", text[2:].split(b"\0", 2)
    if len(rest) < 3:
        return b""
    return _inflated(rest[2]) if compressed else rest[2]


def _inflated(text: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(text, MAX_TAG_BYTES)
    except zlib.error:
        return b""


def _hexadecimal(text: bytes) -> bytes:
    """Return ImageMagick's profile, which is a line feed, a name, a length and hexadecimal digits, each on its line."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
