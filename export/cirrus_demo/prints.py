"""The motifs of a pattern as paths, for a brush to fill and for a pen to outline."""

from __future__ import annotations

import math

import numpy as np
import skia

from cirrus_demo.attributes import Pattern

EXTENT = (-1.1, -0.4, 1.1, 2.8)
"""left, top, right, bottom of the cloth that is printed, in garment units."""


def motif(pattern: Pattern, rng: np.random.Generator) -> skia.Path:
    """Return the printed shapes over the whole cloth. Their size and offset differ from sample to sample."""
    scale = float(rng.uniform(0.88, 1.15))
    offset = (float(rng.uniform(0, 0.2)), float(rng.uniform(0, 0.2)))
    if pattern is Pattern.STRIPED:
        return _bands(0.2 * scale, 0.095 * scale, offset, horizontal=True)
    if pattern is Pattern.PINSTRIPED:
        return _bands(0.125 * scale, 0.04 * scale, offset, horizontal=False)
    if pattern is Pattern.CHECKED:
        path = _bands(0.22 * scale, 0.085 * scale, offset, horizontal=True)
        path.addPath(_bands(0.22 * scale, 0.085 * scale, offset, horizontal=False))
        return path
    if pattern is Pattern.DOTTED:
        path = skia.Path()
        for x, y in _staggered(0.17 * scale, offset):
            path.addCircle(x, y, 0.047 * scale)
        return path
    if pattern is Pattern.FLORAL:
        path = skia.Path()
        for x, y in _staggered(0.32 * scale, offset):
            turn = float(rng.uniform(0, 2 * math.pi))
            shift_x, shift_y = rng.uniform(-0.03, 0.03, 2)
            path.addPath(_flower(x + float(shift_x), y + float(shift_y), 0.075 * scale, turn))
        return path
    return skia.Path()


def _bands(period: float, width: float, offset: tuple[float, float], *, horizontal: bool) -> skia.Path:
    left, top, right, bottom = EXTENT
    path = skia.Path()
    start, stop = (top, bottom) if horizontal else (left, right)
    for position in np.arange(start + offset[int(horizontal)], stop, period):
        near, far = float(position), float(position) + width
        rectangle = (left, near, right, far) if horizontal else (near, top, far, bottom)
        path.addRect(skia.Rect.MakeLTRB(*rectangle))
    return path


def _staggered(period: float, offset: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the points of a brick-like grid."""
    left, top, right, bottom = EXTENT
    points = []
    for row, y in enumerate(np.arange(top + offset[1], bottom, period * 0.82)):
        for x in np.arange(left + offset[0] + (row % 2) * period / 2, right, period):
            points.append((float(x), float(y)))
    return points


def _flower(x: float, y: float, radius: float, turn: float) -> skia.Path:
    """Return five round petals around a bare heart."""
    path = skia.Path()
    for petal in range(5):
        angle = turn + petal * 2 * math.pi / 5
        path.addCircle(x + radius * 0.85 * math.cos(angle), y + radius * 0.85 * math.sin(angle), radius * 0.5)
    return path
