"""Small files that would cost a decoder far more time or memory than their size tells: one table for each format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Return so many zero bytes, deflated, without holding them."""
    deflate = zlib.compressobj(1)
    block = b"\0" * 2**20
    return (
        b"".join([deflate.compress(block[: min(2**20, count - at)]) for at in range(0, count, 2**20)]) + deflate.flush()
    )


def png_of_zeros(width: int, height: int) -> bytes:
    return png(width, height, png_chunk(b"IDAT", zeros(height * (1 + 3 * width))))


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive JPEG whose scans refine nothing: a few bytes each, and a walk over every block."""
    table = jpeg_segment(0xDB, b"\0" + bytes([1] * 64))
    frame = jpeg_segment(0xC2, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0))
    # one code of one bit for a DC difference of zero, one for a run of 2^14 or more blocks
    codes = jpeg_segment(0xC4, bytes([0x00, 1, *([0] * 15), 0])) + jpeg_segment(
        0xC4, bytes([0x10, 1, *([0] * 15), 0xE0])
    )
    blocks = -(-width // 8) * -(-height // 8)
    first = jpeg_segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0])) + b"\0" * (blocks // 8 + 1)
    run = jpeg_segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0])) + b"\0" * (2 * (blocks // 2**14) + 4)
    refined = jpeg_segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0x10])) + b"\0" * (2 * (blocks // 2**14) + 4)
    return b"\xff\xd8" + table + frame + codes + first + run + refined * scans + b"\xff\xd9"


def gif(width: int, height: int, before: bytes = b"", data: bytes = b"\x02\x02L\x01\x00;") -> bytes:
    return (
        struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x80, 0, 0)
        + b"\0\0\0\xff\xff\xff"
        + before
        + (struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + data)
    )


def webp_of_one_colour(width: int, height: int, padding: int = 0) -> bytes:
    """Return a lossless WebP of 34 bytes: five codes of one symbol each, and no bit for a pixel; and padding."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "WEBP", lossless=True)
    file = bytearray(content.getvalue())
    bits = int.from_bytes(file[21:25], "little") & ~0xFFFFFFF
    file[21:25] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    file += b"\0" * padding
    file[4:8], file[16:20] = struct.pack("<I", len(file) - 8), struct.pack("<I", len(file) - 20)
    return bytes(file)


def bmp_of_run_lengths(width: int, height: int, data: bytes) -> bytes:
    palette = bytes(range(4)) * 256
    start = 14 + 40 + len(palette)
    file = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return file + header + palette + data


def tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    """Return a little-endian TIFF of these entries (tag, kind, count, value or offset), its data at offset 8."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + packed + b"\0" * 4


def tiff_of(width: int, height: int, *more: tuple[int, int, int, int], data: bytes, compression: int = 8) -> bytes:
    grey = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    return tiff([*grey, *more], data)


def tiff_of_zeros(width: int, height: int, cut_at: int | None = None) -> bytes:
    data = zeros(width * height)[:cut_at]
    return tiff_of(width, height, (273, 4, 1, 8), (279, 4, 1, len(data)), data=data)


def tiff_of_one_tile(width: int, height: int) -> bytes:
    tile = ((322, 4, 1, width), (323, 4, 1, height), (324, 4, 1, 8), (325, 4, 1, 9))
    return tiff_of(8, 8, *tile, data=b"x" * 9)


def tiff_of_strips(count: int) -> bytes:
    strips = ((273, 4, count, 8), (278, 3, 1, 1), (279, 4, count, 8))
    return tiff_of(8, count, *strips, data=b"\0" * 4 * count, compression=1)


def tiff_of_tags(count: int) -> bytes:
    shared = b"x" * 2**20
    tags = ((tag, 7, len(shared), 8) for tag in range(1000, 1000 + count))
    return tiff_of(8, 8, (273, 4, 1, 8), (279, 4, 1, 64), *tags, data=shared, compression=1)


BOMBS: dict[str, dict[str, Callable[[], bytes]]] = {
    "JPEG": {
        "thousands of scans": lambda: jpeg_of_scans(4000, 4000, 5000),
        "scans over many pixels": lambda: jpeg_of_scans(10_000, 10_000, 90),
        "as many scans as are allowed": lambda: jpeg_of_scans(10_000, 10_000, 18),
        "a large image that ends early": lambda: jpeg_of_scans(10_000, 10_000, 9)[:150_000],
        "a flood of comments": lambda: b"\xff\xd8" + jpeg_segment(0xFE, b"") * 200_000 + jpeg_of_scans(8, 8, 1)[2:],
    },
    "PNG": {
        "a line of pixels": lambda: png_of_zeros(1, 100_000_000),
        "the largest square": lambda: png_of_zeros(10_000, 10_000),
        "a large square that ends early": lambda: png_of_zeros(10_000, 10_000)[:200_000],
        "a flood of chunks": lambda: png(8, 8, png_chunk(b"IDAT", b"") * 200_000),
    },
    "WEBP": {
        "34 bytes": lambda: webp_of_one_colour(16_000, 6000),
        "as few bytes as are allowed": lambda: webp_of_one_colour(16_000, 6000, padding=10_000),
        "a flood of chunks": lambda: webp_of_one_colour(8, 8) + struct.pack("<4sI", b"JUNK", 0) * 200_000,
    },
    "GIF": {
        "a screen": lambda: gif(65_000, 1500),
        "a flood of comments": lambda: gif(8, 8, b"!\xfe" + b"\x01x" * 200_000 + b"\0"),
    },
    "BMP": {
        "runs": lambda: bmp_of_run_lengths(10_000, 10_000, b"\0\0" * 20_000),
        "runs that lead nowhere": lambda: bmp_of_run_lengths(8, 8, b"\xff\0" * 20_000_000),
    },
    "TIFF": {
        "zeros": lambda: tiff_of_zeros(10_000, 10_000),
        "zeros that end early": lambda: tiff_of_zeros(10_000, 10_000, cut_at=50_000),
        "one large tile": lambda: tiff_of_one_tile(2**17, 2**14),
        "a strip for each row": lambda: tiff_of_strips(4_000_000),
        "tags on the same data": lambda: tiff_of_tags(59_000),
    },
}
