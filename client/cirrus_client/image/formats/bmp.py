"""BMP: its header."""

from __future__ import annotations

import struct

from cirrus_client.errors import InvalidImage
from cirrus_client.image.formats.header import Header
from cirrus_client.image.formats.orientation import UPRIGHT
from cirrus_client.image.limits import MAX_RLE_PIXELS

SIGNATURE = b"BM"
_CORE_HEADER_BYTES = 12
_RUN_LENGTHS = (1, 2)


def read(image: bytes) -> Header:
    """Read the header. Raises InvalidImage, and struct.error where the file ends too early."""
    (header_bytes,) = struct.unpack_from("<I", image, 14)
    if header_bytes == _CORE_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", image, 18)
        return Header("BMP", width, height, UPRIGHT, (image,))
    width, height = struct.unpack_from("<ii", image, 18)
    (compression,) = struct.unpack_from("<I", image, 30)
    height = abs(height)
    if compression in _RUN_LENGTHS and max(width * height, len(image)) > MAX_RLE_PIXELS:
        raise InvalidImage(
            f"the run-length encoded BMP image has {width * height:,} pixels in {len(image):,} bytes, the limit is "
            f"{MAX_RLE_PIXELS:,} of either: save it as PNG"
        )
    return Header("BMP", width, height, UPRIGHT, (image,))
