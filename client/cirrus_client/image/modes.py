"""Every mode of Pillow as a person sees it on a screen. docs/images.md has the table.

Modes that the papers' loaders read are kept until the crop: pixels depend on when an image is converted to RGB.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.Image import Transpose

from cirrus_client.errors import InvalidImage

KEPT = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"})
CONVERTED = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA", "RGBX": "RGB", "HSV": "RGB"}
_SIXTEEN_BITS, _LAB, _FLOAT = "I;16", "LAB", "F"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def as_seen(image: Image.Image) -> Image.Image:
    """Return a decoded image in one of the modes KEPT, with the levels that a person sees.

    Raises InvalidImage if its mode does not say which level is black and which is white.
    """
    if image.mode in KEPT:
        return image
    if image.mode in CONVERTED:
        return image.convert(CONVERTED[image.mode])
    if image.mode.startswith(_SIXTEEN_BITS):
        return _of_sixteen_bits(image)
    if image.mode == _LAB:
        return _of_lab(image)
    if image.mode == _FLOAT:
        return _of_floats(image)
    raise InvalidImage(
        f"the image has Pillow's mode {image.mode}, which does not say which level is white: save it with 8 or 16 bits "
        "per channel"
    )


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image turned by EXIF's orientation, 1 to 8."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def on_white(image: Image.Image) -> Image.Image:
    """Return an image over a white ground, as RGB; an image without transparency is returned unchanged."""
    if not image.has_transparency_data:
        return image
    ground, coloured = Image.new("RGB", image.size, "white"), image.convert("RGBA")
    ground.paste(coloured, mask=coloured)
    return ground


def _of_sixteen_bits(image: Image.Image) -> Image.Image:
    """The high byte of 16 bits, or of the 12 that some TIFFs have."""
    levels = np.asarray(image)
    opaque = levels != image.info["transparency"] if "transparency" in image.info else None
    bits = _tiff_tag(image, _BITS_PER_SAMPLE)
    seen = (levels >> (4 if bits == 12 else 8)).astype(np.uint8)
    grey = Image.fromarray(255 - seen if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO else seen)
    if opaque is not None:
        grey.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    return grey


def _of_floats(image: Image.Image) -> Image.Image:
    """Floating-point levels from 0 to 1, which every viewer shows as black to white; others have no such convention."""
    levels = np.asarray(image)
    lowest, highest = levels.min(), levels.max()
    if not 0 <= lowest <= highest <= 1:  # NaN is neither
        raise InvalidImage(
            f"the image has Pillow's mode F with levels from {lowest:g} to {highest:g}; floating-point levels are "
            "shown from 0 (black) to 1 (white): scale them"
        )
    scaled = levels * 255
    seen = np.rint(scaled, out=scaled).astype(np.uint8)
    return Image.fromarray(255 - seen if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO else seen)


def _of_lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    seen = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    assert seen is not None
    return seen


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """Return the first number of a tag, of an image that Pillow has opened as a TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    value = image.tag_v2.get(tag)
    return value[0] if isinstance(value, tuple) else value
