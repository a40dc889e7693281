"""What an image file says about its image before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from cirrus_client.errors import InvalidImage
from cirrus_client.image.limits import MAX_PARTS


@dataclass(frozen=True)
class Header:
    """An image file that is not decoded yet.

    format: Pillow's name of the format. width, height: of the stored image in pixels. orientation: EXIF's number, 1 to
    8, of how it is turned to be upright. parts: the bytes that decide the pixels, in order. Texts, profiles,
    thumbnails, comments and further frames are left out, so that they decide nothing, and no decoder spends time on
    them. channels: of a JPEG. clear: the level, or the RGB levels, in eight bits, of the pixels of a PNG that are
    transparent, where neither an alpha channel nor a palette says so.
    """

    format: str
    width: int
    height: int
    orientation: int
    parts: tuple[bytes | memoryview, ...]
    channels: int | None = None
    clear: int | tuple[int, int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the stored image in pixels."""
        return self.width, self.height

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    @property
    def num_bytes(self) -> int:
        """Number of bytes that decide the pixels."""
        return sum(map(len, self.parts))

    def file(self) -> bytes:
        """Return a file of the same format with nothing but the bytes that decide the pixels."""
        return b"".join(self.parts)


def too_many_parts(kind: str) -> InvalidImage:
    """Return the error for a file of more than MAX_PARTS parts. kind: the format and its parts, like "PNG chunks"."""
    return InvalidImage(f"the image has more {kind} than the limit of {MAX_PARTS:,}")
