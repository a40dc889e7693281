"""Resize with SIMD instructions (fast_image_resize): about seven times as fast as Pillow, within one level of it.

https://github.com/Cykooz/cykooz.resizer
"""

from __future__ import annotations

import threading

from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

# Catmull-Rom is Pillow's bicubic.
_OPTIONS = {
    pillows: ResizeOptions(resize_alg=ResizeAlg.convolution(filter_type))
    for pillows, filter_type in (
        (Image.Resampling.BICUBIC, FilterType.catmull_rom),
        (Image.Resampling.BILINEAR, FilterType.bilinear),
    )
}
_MODES = ("L", "RGB")
_of_thread = threading.local()


def resize_fast(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Resize an image to [width, height]. resampling: BICUBIC or BILINEAR.

    The width is resized before the height, as Pillow does, since levels are rounded in between. Filter weights have 16
    bits where Pillow's have 32: when photos are made smaller, one level in 270 differs from Pillow's, by one. Pillow
    itself resizes images that are neither 8-bit grey nor RGB.
    """
    if image.mode not in _MODES:
        return image.resize(size, resampling)
    width, height = size
    return _resized(_resized(image, (width, image.height), resampling), (width, height), resampling)


def _resized(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    if not hasattr(_of_thread, "resizer"):
        _of_thread.resizer = Resizer()
    resized = Image.new(image.mode, size)
    _of_thread.resizer.resize_pil(image, resized, _OPTIONS[resampling])
    return resized
