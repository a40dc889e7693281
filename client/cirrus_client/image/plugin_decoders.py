"""Decoders of formats that Pillow has in some builds, or from a plug-in."""

from __future__ import annotations

from PIL import ImageFile

from cirrus_client.errors import MissingPackage, UnsupportedImage
from cirrus_client.extras import need


def plugin_decoder(format: str) -> type[ImageFile.ImageFile]:
    """Return the decoder of HEIF or AVIF. Raises UnsupportedImage if it is not installed."""
    found = _heif() if format == "HEIF" else _avif()
    if found is None:
        raise UnsupportedImage("the image is an AVIF file, and Pillow has no decoder here: pip install 'pillow>=11.3'")
    return found


def _heif() -> type[ImageFile.ImageFile]:
    try:
        decoder: type[ImageFile.ImageFile] = need("pillow_heif", "decoding a HEIF image").HeifImageFile
    except MissingPackage as error:
        raise UnsupportedImage(str(error)) from None
    return decoder


def _avif() -> type[ImageFile.ImageFile] | None:
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        return None
    return AvifImagePlugin.AvifImageFile if AvifImagePlugin.SUPPORTED else None
