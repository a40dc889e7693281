"""Pillow's bicubic resize with SIMD instructions, by fast_image_resize: some seven times as fast, and not to the bit.

https://github.com/Cykooz/cykooz.resizer
"""

from __future__ import annotations

import threading

from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

# Catmull-Rom is Pillow's bicubic.
_OPTIONS = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.catmull_rom))
_MODES = ("L", "RGB")
_of_thread = threading.local()


def resize_fast(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image in another size, [width, height].

    Width before height, as Pillow does it, since levels are rounded in between. Weights have 16 bits where Pillow's
    have 32: of photos made smaller, one level in 270 differs from Pillow's, by one. Images other than 8-bit grey and
    RGB are left to Pillow itself.
    """
    if image.mode not in _MODES:
        return image.resize(size, Image.Resampling.BICUBIC)
    width, height = size
    return _resized(_resized(image, (width, image.height)), (width, height))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if not hasattr(_of_thread, "resizer"):
        _of_thread.resizer = Resizer()
    resized = Image.new(image.mode, size)
    _of_thread.resizer.resize_pil(image, resized, _OPTIONS)
    return resized
