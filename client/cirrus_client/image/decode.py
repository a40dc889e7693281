"""Decode untrusted image files: what is wrong with the bytes is InvalidImage, a lack of memory is MemoryError."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cirrus_client.errors import InvalidImage
from cirrus_client.image.formats import bmp, gif, heif, jpeg, png, tiff, webp
from cirrus_client.image.formats.header import Header
from cirrus_client.image.formats.orientation import UPRIGHT
from cirrus_client.image.limits import BOMB_PIXELS, BOMB_PIXELS_PER_BYTE, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from cirrus_client.image.modes import as_seen, upright
from cirrus_client.image.plugin_decoders import plugin_decoder

_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], Header]], ...] = (
    (lambda image: image.startswith(jpeg.SIGNATURE), jpeg.read),
    (lambda image: image.startswith(png.SIGNATURE), png.read),
    (webp.is_webp, webp.read),
    (lambda image: image.startswith(bmp.SIGNATURE), bmp.read),
    (lambda image: image.startswith(gif.SIGNATURES), gif.read),
    (lambda image: image.startswith(tiff.SIGNATURES), tiff.read),
    (heif.is_heif, heif.read),
)
_DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
}
FORMATS = tuple(_DECODERS)
FORMATS_OF_PLUGINS = ("HEIF", "AVIF")
SIGNATURE_BYTES = 16
"""Number of first bytes that tell every known format."""

_ORIENTATION = 0x0112
_JPEG_SCALES = (8, 4, 2)
_VIDEO_BYTES_PER_PIXEL, _BYTES_PER_PIXEL = 16, 8
_SMALL_CHANGE_BYTES = 64 * 2**20


def decode(image: bytes, shorter_px: int | None = None) -> Image.Image:
    """Decode untrusted bytes to an upright image, after `check_header`. Raises InvalidImage.

    shorter_px: see `decode_checked`.
    """
    return decode_checked(check_header(image), shorter_px)


def begins_as_image(start: bytes) -> bool:
    """Return whether the first SIGNATURE_BYTES of a file are those of a known format."""
    return any(fits(start) for fits, _ in _READERS)


def check_header(image: bytes) -> Header:
    """Check untrusted bytes against the limits on a file's size, parts and pixels, without decoding.

    Raises InvalidImage if the bytes are empty, too many, of no known format, broken, or over a limit.
    """
    if not image:
        raise InvalidImage("the image is empty (0 bytes)")
    if len(image) > MAX_IMAGE_BYTES:
        raise InvalidImage(f"the image has more bytes than the limit of {MAX_IMAGE_BYTES:,}")
    read = next((read for fits, read in _READERS if fits(image)), None)
    if read is None:
        start = image[:8].hex(" ")
        known = ", ".join((*FORMATS, *FORMATS_OF_PLUGINS))
        raise InvalidImage(f"the bytes are not an image in a known format ({known}); they start with {start}")
    try:
        header = read(image)
    except (struct.error, IndexError, OverflowError):
        raise InvalidImage("the image is broken: it ends within its header") from None
    check_size(*header.size)
    if header.pixels > max(BOMB_PIXELS, BOMB_PIXELS_PER_BYTE * header.num_bytes):
        raise InvalidImage(
            f"the image is {header.width} x {header.height} = {header.pixels:,} pixels in {header.num_bytes:,} bytes: "
            "it is a decompression bomb"
        )
    return header


def check_size(width: int, height: int) -> None:
    """Raise InvalidImage if an image has no pixels or more than MAX_IMAGE_PIXELS."""
    if not (width > 0 and height > 0 and width * height <= MAX_IMAGE_PIXELS):
        raise InvalidImage(
            f"the image is {width} x {height} = {width * height:,} pixels, the limit is {MAX_IMAGE_PIXELS:,}"
        )


def decode_checked(header: Header, shorter_px: int | None = None) -> Image.Image:
    """Decode a file whose header was checked to an upright image, as a person sees it. Raises InvalidImage.

    shorter_px: None decodes at full size. A number decodes a JPEG at the smallest of its scales (1, 1/2, 1/4, 1/8)
    whose shorter side is still at least that many pixels. Raises MemoryError if there is not enough memory to tell
    whether the file is broken. Raises UnsupportedImage if the format's decoder is not installed.
    """
    decoder = _DECODERS.get(header.format) or plugin_decoder(header.format)
    try:
        return _decoded(decoder, header, shorter_px)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        kind, reason = type(error), str(error)
    # raised anew, since the frames of the traceback above hold the memory of the image
    if issubclass(kind, MemoryError):
        raise MemoryError(reason)
    if issubclass(kind, InvalidImage):
        raise InvalidImage(reason)
    _check_memory(header)
    raise InvalidImage(f"the {header.format} image of {header.width} x {header.height} pixels is broken: {reason}")


def jpeg_scale(header: Header, shorter_px: int | None) -> int:
    """Return 1, 2, 4 or 8: by how much a JPEG may be decoded smaller. shorter_px: see `decode_checked`."""
    if header.format != "JPEG" or shorter_px is None:
        return 1
    smallest = (math.ceil(side * shorter_px / min(header.size)) for side in header.size)
    largest = min(side // small for side, small in zip(header.size, smallest, strict=True))
    return next((scale for scale in _JPEG_SCALES if largest >= scale), 1)


def memory_of(header: Header, shorter_px: int | None = None) -> int:
    """Return about how many bytes of memory decoding takes. shorter_px: see `decode_checked`."""
    of_video = header.format in ("WEBP", *FORMATS_OF_PLUGINS)
    per_pixel = _VIDEO_BYTES_PER_PIXEL if of_video else _BYTES_PER_PIXEL
    return per_pixel * header.pixels // jpeg_scale(header, shorter_px) ** 2


def _decoded(decoder: type[ImageFile.ImageFile], header: Header, shorter_px: int | None) -> Image.Image:
    opened = decoder(io.BytesIO(header.file()))
    if header.format in FORMATS_OF_PLUGINS:
        return _of_plugin(opened, header)
    if opened.size != header.size:
        raise ValueError(f"its size is given as {opened.width} x {opened.height} as well")
    scale = jpeg_scale(header, shorter_px)
    if scale > 1:
        opened.draft(None, (header.width // scale, header.height // scale))
    opened.load()
    if header.clear is not None:
        opened.info["transparency"] = header.clear
    return upright(as_seen(opened), header.orientation)


def _of_plugin(opened: ImageFile.ImageFile, header: Header) -> Image.Image:
    """Decode a file whose size and orientation the decoder knows better, as it may crop and turn the image."""
    check_size(*opened.size)
    if opened.width * opened.height > header.pixels:
        raise ValueError(f"its size is given as {opened.width} x {opened.height} as well")
    turned = int(opened.getexif().get(_ORIENTATION, UPRIGHT))
    opened.load()
    return upright(as_seen(opened), turned)


def _check_memory(header: Header) -> None:
    """Raise MemoryError if what an image needs can't be allocated: decoders in C call that a broken file as well."""
    np.empty(memory_of(header) + _SMALL_CHANGE_BYTES, dtype=np.uint8)
