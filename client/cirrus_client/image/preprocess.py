"""From untrusted image bytes to model pixels: the one implementation, also run inside Triton.

Pillow's antialiased bicubic resize is the reference of every supported recipe. The geometry is torchvision's
(`Resize` of the shorter side, `CenterCrop`), the padding is TargetPad of the CIR papers' code.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from cirrus_client.errors import InvalidImage
from cirrus_client.image.fast_resize import resize_fast
from cirrus_client.image.nvjpeg import decode_on_gpu
from cirrus_client.records import Record

MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 100_000_000
_SCALED_MARGIN = 2
Resize = Callable[[Image.Image, tuple[int, int]], Image.Image]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


class Pad(StrEnum):
    """What happens to elongated images: nothing but the crop, TargetPad before the resize, or a resize out of shape.

    STRETCH is the image processor of InstructBLIP, which resizes both sides at once.
    """

    NONE = "none"
    TARGET = "target"
    STRETCH = "stretch"


class Decoding(StrEnum):
    """How a photo is decoded: exactly as the reference does, or, for a gallery, faster and a little differently.

    FAST decodes a JPEG at half, a quarter or an eighth of its size, no smaller than twice the model's, and resizes with
    SIMD instructions; the fidelity report of a bundle says how its embeddings differ. NVJPEG decodes JPEGs on an NVIDIA
    GPU, whose arithmetic rounds otherwise, `cirrus gpu-check` says by how much; it resizes as FAST does.
    """

    EXACT = "exact"
    FAST = "fast"
    NVJPEG = "nvjpeg"


class PreprocessSpec(Record):
    """How an image becomes pixels. Part of a bundle's contract and of its space's fingerprint."""

    size_px: int = Field(gt=0, le=4096)
    pad: Pad = Pad.NONE
    target_ratio: float = Field(default=1.25, ge=1.0)
    convert_rgb: Literal["before_resize", "after_crop"] = "before_resize"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC)


def preprocess(image: bytes, spec: PreprocessSpec, decoding: Decoding = Decoding.EXACT) -> NDArray[np.float32]:
    """Return normalised pixels, float32 [3, size_px, size_px], of an encoded image.

    The EXIF orientation is applied first: cameras store upright photos sideways, and encoders only know upright.
    Raises InvalidImage with the reason if the bytes are not an acceptable image, EngineError if NVJPEG is asked for and
    there is no such decoder.
    """
    if decoding is Decoding.NVJPEG:
        decoded = _nvjpeg(image) or decode(image)
    else:
        decoded = decode(image, _SCALED_MARGIN * spec.size_px if decoding is Decoding.FAST else None)
    return normalise(fit(decoded, spec, _resize if decoding is Decoding.EXACT else resize_fast), spec)


def decode(image: bytes, shorter_px: int | None = None) -> Image.Image:
    """Decode untrusted bytes, upright, after `check_header`. Raises InvalidImage.

    shorter_px: None decodes all of the image; else a JPEG is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8)
    whose shorter side is at least that.
    """
    decoded = check_header(image)
    try:
        if shorter_px is not None:
            scale = shorter_px / min(decoded.size)
            decoded.draft(None, (math.ceil(decoded.width * scale), math.ceil(decoded.height * scale)))
        decoded.load()
        return ImageOps.exif_transpose(_eight_bit(decoded))
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        kind, (width, height) = decoded.format or "image", decoded.size
        raise InvalidImage(f"the {kind} image of {width} x {height} pixels is broken: {error}") from None


def check_header(image: bytes) -> Image.Image:
    """Return the image, not decoded yet, after checking its size limits on the header alone.

    Raises InvalidImage if the bytes are empty, too many, of no known format, broken, or have too many pixels.
    """
    if not image:
        raise InvalidImage("the image is empty (0 bytes)")
    if len(image) > MAX_IMAGE_BYTES:
        raise InvalidImage(f"the image has {len(image):,} bytes, the limit is {MAX_IMAGE_BYTES:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(image), formats=FORMATS)
    except UnidentifiedImageError:
        start = image[:8].hex(" ")
        raise InvalidImage(
            f"the bytes are not an image in a known format ({', '.join(FORMATS)}); they start with {start}"
        ) from None
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"the image is too large: {error}; the limit is {MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # as above
        raise InvalidImage(f"the image header is broken: {error}") from None
    width, height = opened.size
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise InvalidImage(
            f"the image is {width} x {height} = {width * height:,} pixels, the limit is {MAX_IMAGE_PIXELS:,}"
        )
    return opened


def fit(image: Image.Image, spec: PreprocessSpec, resize: Resize = _resize) -> Image.Image:
    """Pad, resize the shorter side and centre-crop, or stretch, to size_px x size_px, in RGB.

    resize: from an image and a size, [width, height], to the image in that size.
    """
    if spec.convert_rgb == "before_resize":
        image = image.convert("RGB")
    if spec.pad is Pad.TARGET:
        image = _target_pad(image, spec.target_ratio)
    if spec.pad is Pad.STRETCH:
        image = resize(image, (spec.size_px, spec.size_px))
    else:
        image = _centre_crop(_resize_shorter_side(image, spec.size_px, resize), spec.size_px)
    return image.convert("RGB")


def normalise(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Return (value / 255 - mean) / std of an RGB image, float32 [3, H, W]."""
    levels = np.asarray(image)
    table = _normalised_levels(spec.mean, spec.std)
    return np.stack([table[channel].take(levels[..., channel]) for channel in range(3)])


def _nvjpeg(image: bytes) -> Image.Image | None:
    """The image, upright, if nvJPEG takes it: other formats, CMYK and broken files are left to Pillow."""
    header = check_header(image)
    if header.format != "JPEG" or header.mode not in ("L", "RGB"):
        return None
    pixels = decode_on_gpu(image)
    return None if pixels is None else Image.fromarray(pixels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey levels scaled to eight bits; Pillow's own conversion clips them to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _check_elongation(image: Image.Image, width: int, height: int) -> None:
    """A line of pixels in a file of a few bytes would be padded or resized to gigabytes."""
    if width * height > MAX_IMAGE_PIXELS:
        raise InvalidImage(
            f"the image of {image.width} x {image.height} pixels is too elongated: fitted to the model it would have "
            f"{width} x {height} = {width * height:,} pixels, the limit is {MAX_IMAGE_PIXELS:,}"
        )


def _target_pad(image: Image.Image, target_ratio: float) -> Image.Image:
    width, height = image.size
    if max(width, height) / min(width, height) < target_ratio:
        return image
    target = max(width, height) / target_ratio
    horizontal = max(int((target - width) / 2), 0)
    vertical = max(int((target - height) / 2), 0)
    _check_elongation(image, width + 2 * horizontal, height + 2 * vertical)
    padded = Image.new(image.mode, (width + 2 * horizontal, height + 2 * vertical))
    if image.mode == "P":
        padded.putpalette(image.getpalette() or [])
    padded.paste(image, (horizontal, vertical))
    return padded


def _resize_shorter_side(image: Image.Image, size_px: int, resize: Resize) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    size = (int(size_px * width / shorter), int(size_px * height / shorter))
    _check_elongation(image, *size)
    return image if size == image.size else resize(image, size)


def _centre_crop(image: Image.Image, size_px: int) -> Image.Image:
    left = round((image.width - size_px) / 2.0)
    top = round((image.height - size_px) / 2.0)
    return image.crop((left, top, left + size_px, top + size_px))


@lru_cache(maxsize=16)
def _normalised_levels(mean: tuple[float, float, float], std: tuple[float, float, float]) -> NDArray[np.float32]:
    """All 256 levels of each channel, normalised in float32 as torchvision's ToTensor and Normalize do."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    means, deviations = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
    normalised: NDArray[np.float32] = (levels[None] - means[:, None]) / deviations[:, None]
    return normalised
