"""Images as callers give them: the bytes of a file, its path, or a PIL image. All become the bytes of a file."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, __version__

from cirrus_client.errors import InvalidImage, UnreadableImage
from cirrus_client.image.decode import check_size
from cirrus_client.image.formats.orientation import UPRIGHT
from cirrus_client.image.limits import MAX_IMAGE_BYTES
from cirrus_client.image.modes import as_seen, upright

_ORIENTATION = 0x0112
_NOT_IN_PNG = frozenset({"CMYK", "YCbCr"})
_READS_YCBCR = int(__version__.split(".")[0]) >= 13  # older Pillow takes the levels of an uncompressed TIFF for RGB

ImageInput = bytes | bytearray | memoryview | str | Path | Image.Image
"""The bytes of an image file, its path, or a decoded image."""


def image_bytes(image: ImageInput) -> bytes:
    """Return an image as the bytes of a file. A PIL image is encoded without loss, upright and as a person sees it.

    Raises UnreadableImage if a path can't be read, and InvalidImage for anything that is not an image.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return _encoded(image)
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


def _encoded(image: Image.Image) -> bytes:
    try:
        check_size(image.width, image.height)
        image.load()
        seen = upright(as_seen(image), _orientation(image))
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # a closed image, a truncated file, or whatever Pillow's decoders raise
        if isinstance(error, OSError) and error.errno is not None:
            raise UnreadableImage(f"can't read the PIL image: {error.strerror}", errno=error.errno) from None
        raise InvalidImage(f"the PIL image can't be read: {error}") from None
    if seen.mode == "YCbCr" and not _READS_YCBCR:
        seen = seen.convert("RGB")
    file = io.BytesIO()
    if seen.mode in _NOT_IN_PNG:
        seen.copy().save(file, format="TIFF")  # a copy has no tags, of which XMP's orientation would turn it again
    else:
        seen.save(file, format="PNG")
    content = file.getvalue()
    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidImage(
            f"the PIL image of {image.width} x {image.height} pixels becomes a file of {len(content):,} bytes without "
            f"loss, the limit is {MAX_IMAGE_BYTES:,}: give its own file, or a smaller image"
        )
    return content


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, UPRIGHT))
    except Exception:  # damaged EXIF data, which do not decide an image's fate
        return UPRIGHT
