"""Turn untrusted image bytes into model pixels. Triton runs this same code.

Pillow's antialiased resize is the reference. The geometry is torchvision's: `Resize` of the shorter side, then
`CenterCrop`; or `Resize` of both sides. The padding is TargetPad of the CIR papers' code.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from cirrus_client.errors import InvalidImage
from cirrus_client.image.fast_resize import resize_fast
from cirrus_client.image.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from cirrus_client.image.nvjpeg import decode_on_gpu
from cirrus_client.records import GrownRecord

_SCALED_MARGIN = 2
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


class Pad(StrEnum):
    """How an image becomes square.

    NONE resizes the shorter side and crops the centre. TARGET pads elongated images first (the CIR papers' TargetPad).
    STRETCH resizes both sides at once, out of proportion: open_clip's "squash", and InstructBLIP's image processor.
    """

    NONE = "none"
    TARGET = "target"
    STRETCH = "stretch"


class Interpolation(StrEnum):
    """The resize filter, Pillow's of that name, with antialiasing."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"


Resize = Callable[[Image.Image, tuple[int, int], Interpolation], Image.Image]
"""Resizes an image to [width, height] with a filter."""


class Decoding(StrEnum):
    """How an image file is decoded.

    EXACT is the reference, and what queries use. FAST is for galleries: it decodes a JPEG at 1/2, 1/4 or 1/8 of its
    size, but not under twice the model's, and resizes with SIMD instructions; a bundle's fidelity report measures the
    difference. NVJPEG decodes JPEGs on an NVIDIA GPU, with other rounding (`cirrus gpu-check` measures it), and resizes
    as FAST does.
    """

    EXACT = "exact"
    FAST = "fast"
    NVJPEG = "nvjpeg"


class PreprocessSpec(GrownRecord):
    """How an image becomes pixels. Part of a bundle's contract, and its JSON is part of the space's fingerprint.

    The defaults are OpenAI CLIP's. convert_rgb: when palette, grey and transparent images become RGB; before the resize
    or after the crop gives different pixels.
    """

    later_fields: ClassVar[frozenset[str]] = frozenset({"interpolation"})

    size_px: int = Field(gt=0, le=4096)
    pad: Pad = Pad.NONE
    target_ratio: float = Field(default=1.25, ge=1.0)
    convert_rgb: Literal["before_resize", "after_crop"] = "before_resize"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Interpolation = Interpolation.BICUBIC


_FILTERS = {Interpolation.BICUBIC: Image.Resampling.BICUBIC, Interpolation.BILINEAR: Image.Resampling.BILINEAR}


def resize_exactly(image: Image.Image, size: tuple[int, int], interpolation: Interpolation) -> Image.Image:
    """Resize an image to [width, height] with Pillow, the reference."""
    return image.resize(size, _FILTERS[interpolation])


def preprocess(image: bytes, spec: PreprocessSpec, decoding: Decoding = Decoding.EXACT) -> NDArray[np.float32]:
    """Return the normalised pixels of one encoded image, float32 [3, size_px, size_px].

    The EXIF orientation is applied first, since cameras store upright photos sideways.
    Raises InvalidImage with the reason if the bytes are not an acceptable image, and MemoryError if there is not enough
    memory to tell. Raises EngineError if NVJPEG is asked for and nvImageCodec or a GPU is missing.
    """
    if decoding is Decoding.NVJPEG:
        decoded = _nvjpeg(image) or decode(image)
    else:
        decoded = decode(image, _SCALED_MARGIN * spec.size_px if decoding is Decoding.FAST else None)
    return normalise(fit(decoded, spec, resize_exactly if decoding is Decoding.EXACT else _resize_fast), spec)


def decode(image: bytes, shorter_px: int | None = None) -> Image.Image:
    """Decode untrusted bytes to an upright image, after `check_header`. Raises InvalidImage.

    shorter_px: None decodes at full size. A number decodes a JPEG at the smallest of its scales (1, 1/2, 1/4, 1/8)
    whose shorter side is still at least that many pixels.
    """
    decoded = check_header(image)
    try:
        if shorter_px is not None:
            scale = shorter_px / min(decoded.size)
            decoded.draft(None, (math.ceil(decoded.width * scale), math.ceil(decoded.height * scale)))
        decoded.load()
        return ImageOps.exif_transpose(_eight_bit(decoded))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        kind, (width, height) = decoded.format or "image", decoded.size
        raise InvalidImage(f"the {kind} image of {width} x {height} pixels is broken: {error}") from None


def check_header(image: bytes) -> Image.Image:
    """Open untrusted bytes without decoding them, and check the size limits on the header.

    Raises InvalidImage if the bytes are empty, too many, of no known format, broken, or have too many pixels.
    """
    if not image:
        raise InvalidImage("the image is empty (0 bytes)")
    if len(image) > MAX_IMAGE_BYTES:
        raise InvalidImage(f"the image has more bytes than the limit of {MAX_IMAGE_BYTES:,}")
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
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise InvalidImage(f"the image header is broken: {error}") from None
    width, height = opened.size
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise InvalidImage(
            f"the image is {width} x {height} = {width * height:,} pixels, the limit is {MAX_IMAGE_PIXELS:,}"
        )
    return opened


def fit(image: Image.Image, spec: PreprocessSpec, resize: Resize = resize_exactly) -> Image.Image:
    """Return the image as size_px x size_px RGB: padded as `Pad` says, then resized and cropped, or stretched."""
    if spec.convert_rgb == "before_resize":
        image = image.convert("RGB")
    if spec.pad is Pad.TARGET:
        image = _target_pad(image, spec.target_ratio)
    if spec.pad is Pad.STRETCH:
        image = resize(image, (spec.size_px, spec.size_px), spec.interpolation)
    else:
        image = _centre_crop(_resize_shorter_side(image, spec, resize), spec.size_px)
    return image.convert("RGB")


def normalise(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Return (level / 255 - mean) / std of an RGB image, float32 [3, H, W]."""
    levels = np.asarray(image)
    table = _normalised_levels(spec.mean, spec.std)
    return np.stack([table[channel].take(levels[..., channel]) for channel in range(3)])


def _nvjpeg(image: bytes) -> Image.Image | None:
    """Return the upright image, or None for what is left to Pillow: other formats, CMYK and broken files."""
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
    """Refuse a line of pixels: a file of a few bytes that padding or resizing would turn into gigabytes."""
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


def _resize_shorter_side(image: Image.Image, spec: PreprocessSpec, resize: Resize) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    size = (int(spec.size_px * width / shorter), int(spec.size_px * height / shorter))
    _check_elongation(image, *size)
    return image if size == image.size else resize(image, size, spec.interpolation)


def _resize_fast(image: Image.Image, size: tuple[int, int], interpolation: Interpolation) -> Image.Image:
    return resize_fast(image, size, _FILTERS[interpolation])


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
