"""Colours as red, green and blue levels."""

from __future__ import annotations

import numpy as np
import skia

from cirrus_demo.attributes import Colour

RGB = tuple[int, int, int]

DYES: dict[Colour, RGB] = {
    Colour.BLACK: (42, 42, 46),
    Colour.WHITE: (244, 243, 239),
    Colour.RED: (200, 38, 46),
    Colour.ORANGE: (238, 126, 36),
    Colour.YELLOW: (246, 206, 62),
    Colour.GREEN: (48, 142, 84),
    Colour.BLUE: (46, 98, 196),
    Colour.PURPLE: (122, 70, 168),
    Colour.PINK: (243, 150, 184),
    Colour.BROWN: (122, 80, 50),
}

WALLS: tuple[RGB, ...] = (
    (236, 233, 228),
    (222, 226, 230),
    (214, 222, 214),
    (232, 220, 208),
    (208, 212, 224),
    (196, 192, 188),
    (226, 214, 222),
    (178, 186, 192),
)


def dyed(colour: Colour, rng: np.random.Generator) -> RGB:
    """Return one batch of a dye: no two garments of a colour are quite alike."""
    levels = np.asarray(DYES[colour], dtype=np.float64)
    levels = levels * rng.uniform(0.94, 1.06) + rng.uniform(-7, 7, 3)
    red, green, blue = (int(level) for level in np.clip(levels, 0, 255))
    return red, green, blue


def shade(rgb: RGB, factor: float) -> RGB:
    """Return a darker (factor below 1) or lighter colour."""
    red, green, blue = (int(min(255, max(0, level * factor))) for level in rgb)
    return red, green, blue


def ink(rgb: RGB, alpha: float = 1.0) -> int:
    """Return the colour as the drawing library wants it."""
    return int(skia.ColorSetARGB(round(255 * alpha), *rgb))
