"""Turn untrusted image bytes into model pixels. Triton runs this same code.

Pillow's antialiased resize is the reference. The geometry is torchvision's: `Resize` of the shorter side, then
`CenterCrop`; or `Resize` of both sides. The padding is TargetPad of the CIR papers' code.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from math import prod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from cirrus_client.choices import member
from cirrus_client.errors import InvalidImage
from cirrus_client.image.decode import check_header, decode_checked, jpeg_scale, memory_of
from cirrus_client.image.fast_resize import resize_fast
from cirrus_client.image.formats.header import Header
from cirrus_client.image.limits import MAX_IMAGE_PIXELS
from cirrus_client.image.modes import on_white, upright
from cirrus_client.image.nvjpeg import decode_on_gpu
from cirrus_client.image.room import room_for
from cirrus_client.records import GrownRecord

_SCALED_MARGIN = 2
_BYTES_PER_FITTED_PIXEL = 4


class Pad(StrEnum):
    """How an image becomes square.

    NONE resizes the shorter side and crops the centre. TARGET pads elongated images first (the CIR papers' TargetPad).
    STRETCH resizes both sides at once, out of proportion: open_clip's "squash", and InstructBLIP's image processor.
    SQUARE crops the largest centre square first, and resizes that (MagicLens).
    """

    NONE = "none"
    TARGET = "target"
    STRETCH = "stretch"
    SQUARE = "square"


class Interpolation(StrEnum):
    """The resize filter, Pillow's of that name, with antialiasing."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"


class Crop(StrEnum):
    """How the offset of the centre crop is rounded where the margin is odd.

    ROUND takes the nearest number of pixels, a half to the even one: torchvision's CenterCrop, and so OpenAI's,
    open_clip's and most papers' transforms. FLOOR takes the lower one: Hugging Face's image processors.
    """

    ROUND = "round"
    FLOOR = "floor"


class Transparency(StrEnum):
    """What is seen where an image is transparent.

    DROPPED shows the colours that the file stores there, often black, as the papers' loaders do with Pillow's
    `convert("RGB")`. WHITE lays the image on a white ground, as a screen does, so that a sketch keeps its lines.
    """

    DROPPED = "dropped"
    WHITE = "white"


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

    later_fields: ClassVar[frozenset[str]] = frozenset({"interpolation", "crop", "transparency"})

    size_px: int = Field(gt=0, le=4096)
    pad: Pad = Pad.NONE
    target_ratio: float = Field(default=1.25, ge=1.0)
    convert_rgb: Literal["before_resize", "after_crop"] = "before_resize"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Interpolation = Interpolation.BICUBIC
    crop: Crop = Crop.ROUND
    transparency: Transparency = Transparency.DROPPED


_FILTERS = {Interpolation.BICUBIC: Image.Resampling.BICUBIC, Interpolation.BILINEAR: Image.Resampling.BILINEAR}


def resize_exactly(image: Image.Image, size: tuple[int, int], interpolation: Interpolation) -> Image.Image:
    """Resize an image to [width, height] with Pillow, the reference."""
    return image.resize(size, _FILTERS[interpolation])


def preprocess(image: bytes, spec: PreprocessSpec, decoding: Decoding | str = Decoding.EXACT) -> NDArray[np.float32]:
    """Return the normalised pixels of one encoded image, float32 [3, size_px, size_px].

    It is turned upright first, since cameras store upright photos sideways.
    Raises InvalidImage with the reason if the bytes are not an acceptable image, and MemoryError if there is not enough
    memory to tell. Raises EngineError if NVJPEG is asked for and nvImageCodec or a GPU is missing.
    """
    decoding = member(Decoding, decoding, "decoding")
    header = check_header(image)
    check_elongation(header, spec)
    shorter_px = _SCALED_MARGIN * spec.size_px if decoding is Decoding.FAST else None
    with room_for(max(memory_of(header, shorter_px), _memory_to_fit(header, spec, shorter_px))):
        return normalise(_fitted(header, spec, decoding, shorter_px), spec)


def fit(image: Image.Image, spec: PreprocessSpec, resize: Resize = resize_exactly) -> Image.Image:
    """Return the image as size_px x size_px RGB: padded as `Pad` says, then resized and cropped, or stretched."""
    if spec.transparency is Transparency.WHITE:
        image = on_white(image)
    if spec.convert_rgb == "before_resize":
        image = _as_rgb(image)
    image = _largest_square(image) if spec.pad is Pad.SQUARE else _padded(image, spec)
    size = _resized_size(image.size, spec)
    if size != image.size:
        image = resize(image, size, spec.interpolation)
    return _as_rgb(_centre_crop(image, spec))


def normalise(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Return (level / 255 - mean) / std of an RGB image, float32 [3, H, W]."""
    levels = np.asarray(image)
    table = _normalised_levels(spec.mean, spec.std)
    return np.stack([table[channel].take(levels[..., channel]) for channel in range(3)])


def check_elongation(header: Header, spec: PreprocessSpec) -> None:
    """Refuse a line of pixels: a file of a few bytes that padding or resizing would turn into gigabytes.

    Raises InvalidImage.
    """
    padded = _padded_size(header.size, spec)
    for width, height in (padded, _resized_size(padded, spec)):
        if width * height > MAX_IMAGE_PIXELS:
            raise InvalidImage(
                f"the image of {header.width} x {header.height} pixels is too elongated: fitted to the model it would "
                f"have {width} x {height} = {width * height:,} pixels, the limit is {MAX_IMAGE_PIXELS:,}"
            )


def _memory_to_fit(header: Header, spec: PreprocessSpec, shorter_px: int | None) -> int:
    """Return about how many bytes of memory an image takes that is padded and resized."""
    padded = _padded_size(header.size, spec)
    decoded = (header.pixels + (prod(padded) if padded != header.size else 0)) // jpeg_scale(header, shorter_px) ** 2
    return _BYTES_PER_FITTED_PIXEL * (decoded + prod(_resized_size(padded, spec)))


def _fitted(header: Header, spec: PreprocessSpec, decoding: Decoding, shorter_px: int | None) -> Image.Image:
    decoded = _nvjpeg(header) if decoding is Decoding.NVJPEG else None
    resize = resize_exactly if decoding is Decoding.EXACT else _resize_fast
    return fit(decoded or decode_checked(header, shorter_px), spec, resize)


def _nvjpeg(header: Header) -> Image.Image | None:
    """Return the upright image, or None for what is left to Pillow: other formats, CMYK and broken files."""
    if header.format != "JPEG" or header.channels not in (1, 3):
        return None
    pixels = decode_on_gpu(header.file())
    return None if pixels is None else upright(Image.fromarray(pixels), header.orientation)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if "transparency" in image.info:  # Pillow warns before it drops a palette's
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _margins(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return the width of TargetPad's margins left and right, and above and below."""
    longer, shorter = max(size), min(size)
    if spec.pad is not Pad.TARGET or longer / shorter < spec.target_ratio:
        return 0, 0
    target = longer / spec.target_ratio
    horizontal, vertical = (max(int((target - side) / 2), 0) for side in size)
    return horizontal, vertical


def _padded_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    (width, height), (left, top) = size, _margins(size, spec)
    return width + 2 * left, height + 2 * top


def _padded(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    horizontal, vertical = _margins(image.size, spec)
    if not horizontal and not vertical:
        return image
    padded = Image.new(image.mode, (image.width + 2 * horizontal, image.height + 2 * vertical))
    if image.mode == "P":
        padded.putpalette(image.getpalette() or [])
    padded.paste(image, (horizontal, vertical))
    return padded


def _largest_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _resized_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    if spec.pad in (Pad.STRETCH, Pad.SQUARE):
        return spec.size_px, spec.size_px
    width, height = (int(spec.size_px * side / min(size)) for side in size)
    return width, height


def _resize_fast(image: Image.Image, size: tuple[int, int], interpolation: Interpolation) -> Image.Image:
    return resize_fast(image, size, _FILTERS[interpolation])


def _centre_crop(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    left, top = (
        (side - spec.size_px) // 2 if spec.crop is Crop.FLOOR else round((side - spec.size_px) / 2.0)
        for side in image.size
    )
    return image.crop((left, top, left + spec.size_px, top + spec.size_px))


@lru_cache(maxsize=16)
def _normalised_levels(mean: tuple[float, float, float], std: tuple[float, float, float]) -> NDArray[np.float32]:
    """All 256 levels of each channel, normalised in float32 as torchvision's ToTensor and Normalize do."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    means, deviations = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
    normalised: NDArray[np.float32] = (levels[None] - means[:, None]) / deviations[:, None]
    return normalised
