"""Images as callers give them: the bytes of a file, its path, or a PIL image. All become the bytes of a file."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from cirrus_client.errors import InvalidImage, UnreadableImage
from cirrus_client.image.limits import MAX_IMAGE_BYTES

ImageInput = bytes | bytearray | memoryview | str | Path | Image.Image
"""The bytes of an image file, its path, or a decoded image."""


def image_bytes(image: ImageInput) -> bytes:
    """Return an image as the bytes of a file. A decoded image is encoded as PNG, without loss.

    Raises UnreadableImage if a path can't be read, and InvalidImage for anything that is not an image.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()
    if isinstance(image, str | Path):
        return read_image_file(image)
    raise InvalidImage(
        f"an image is the bytes of a file, a path or a PIL image, and not of type {type(image).__name__}"
    )


def read_image_file(path: str | Path) -> bytes:
    """Return the bytes of an image file, but no more than one above MAX_IMAGE_BYTES, which decoding refuses.

    Raises UnreadableImage if the operating system does not give them.
    """
    try:
        with open(path, "rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        reason, errno = error.strerror or str(error), error.errno
    except ValueError as error:  # a NUL in the path, or what the file system's encoding does not have
        reason, errno = str(error), None
    raise UnreadableImage(f"can't read image file {path}: {reason}", path=str(path), errno=errno)
