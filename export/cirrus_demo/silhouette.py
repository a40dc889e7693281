"""The cut of a garment: the outlines that photos and sketches share.

Coordinates are in garment units: x runs from about -1 to 1 with the spine at 0, y runs down from 0 at the shoulder's
neck point; the shoulders are 0.9 wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import skia

from cirrus_demo.attributes import COLLARS, Garment, Kind, Length, Neckline, Sleeve

SHOULDER = (0.45, 0.07)
ARMPIT = (0.385, 0.47)
SLEEVE_LENGTHS = {Sleeve.SHORT: 0.36, Sleeve.ELBOW: 0.74, Sleeve.LONG: 1.22}
HEMS = {
    Kind.DRESS: {Length.SHORT: 1.38, Length.MEDIUM: 1.92, Length.LONG: 2.6},
    Kind.SHIRT: {Length.SHORT: 0.88, Length.MEDIUM: 1.28, Length.LONG: 1.72},
    Kind.TOPTEE: {Length.SHORT: 0.82, Length.MEDIUM: 1.22, Length.LONG: 1.66},
}
NECK_HALF_WIDTHS = {
    Neckline.ROUND: 0.2,
    Neckline.V: 0.19,
    Neckline.SQUARE: 0.25,
    Neckline.TURTLE: 0.15,
    Neckline.POINTED_COLLAR: 0.15,
    Neckline.BAND_COLLAR: 0.15,
    Neckline.OPEN_COLLAR: 0.16,
}


@dataclass(frozen=True)
class SleeveCut:
    """One sleeve: its outline, its cuff's seam and the angle of the arm in degrees, for the pattern to follow."""

    outline: skia.Path
    cuff: skia.Path
    angle_degrees: float


@dataclass(frozen=True)
class Cut:
    """Everything a pen or a brush needs of a garment, back to front."""

    inside: skia.Path
    """The inner back, seen through the neckline."""
    sleeves: tuple[SleeveCut, ...]
    body: skia.Path
    seams: skia.Path
    """Open lines on the body: waist, placket, hem stitching."""
    collar: tuple[skia.Path, ...]
    """Closed pieces on top of the body."""
    buttons: tuple[tuple[float, float], ...]
    hem: float
    """y of the lowest point."""
    half_width: float
    """Largest |x| of the body."""
    reach: float
    """Largest |x| of body and sleeves."""


def cut(garment: Garment, rng: np.random.Generator) -> Cut:
    """Return the garment's outlines, with the small differences that two samples of one garment have."""
    hem = HEMS[garment.kind][garment.length] * float(rng.uniform(0.97, 1.03))
    flare = float(rng.uniform(0.92, 1.08))
    body, half_width = _body(garment, hem, flare)
    arm_degrees = float(rng.uniform(18, 34))
    sleeves = (
        ()
        if garment.sleeve is Sleeve.NONE
        else tuple(
            _sleeve(SLEEVE_LENGTHS[garment.sleeve], side, arm_degrees + float(rng.uniform(-3, 3))) for side in (-1, 1)
        )
    )
    buttoned = garment.kind is Kind.SHIRT
    top = _front_depth(garment.neckline)
    buttons = tuple((0.0, float(y)) for y in np.arange(top + 0.09, hem - 0.08, 0.2)) if buttoned else ()
    return Cut(
        inside=_inside(garment.neckline),
        sleeves=sleeves,
        body=body,
        seams=_seams(garment, hem, flare, top),
        collar=_collar(garment.neckline),
        buttons=buttons,
        hem=hem,
        half_width=half_width,
        reach=max([half_width, *(abs(x) for sleeve in sleeves for x in _sides(sleeve.outline))]),
    )


def _sides(path: skia.Path) -> tuple[float, float]:
    bounds = path.getBounds()
    return float(bounds.left()), float(bounds.right())


def _front_depth(neckline: Neckline) -> float:
    """Return how far below the neck point the front of the neckline reaches."""
    return {
        Neckline.ROUND: 0.2,
        Neckline.V: 0.46,
        Neckline.SQUARE: 0.3,
        Neckline.TURTLE: 0.06,
        Neckline.POINTED_COLLAR: 0.1,
        Neckline.BAND_COLLAR: 0.08,
        Neckline.OPEN_COLLAR: 0.44,
    }[neckline]


def _neck(path: skia.Path, neckline: Neckline) -> None:
    """Continue a path from the left neck point to the right one along the front of the neckline."""
    width, depth = NECK_HALF_WIDTHS[neckline], _front_depth(neckline)
    if neckline in (Neckline.V, Neckline.OPEN_COLLAR):
        path.quadTo(-width * 0.45, depth * 0.55, 0, depth)
        path.quadTo(width * 0.45, depth * 0.55, width, 0)
    elif neckline is Neckline.SQUARE:
        path.lineTo(-width * 0.94, depth)
        path.lineTo(width * 0.94, depth)
        path.lineTo(width, 0)
    else:
        path.cubicTo(-width * 0.9, depth * 1.3, width * 0.9, depth * 1.3, width, 0)


def _body(garment: Garment, hem: float, flare: float) -> tuple[skia.Path, float]:
    """Return the front panel and its largest half width."""
    neck = NECK_HALF_WIDTHS[garment.neckline]
    inset = 0.07 if garment.sleeve is Sleeve.NONE else 0.0
    path = skia.Path()
    path.moveTo(-neck, 0)
    _neck(path, garment.neckline)
    shoulder_x, shoulder_y = SHOULDER[0] - inset, SHOULDER[1]
    armpit_x, armpit_y = ARMPIT
    path.lineTo(shoulder_x, shoulder_y)
    path.quadTo(armpit_x - 0.06 - inset * 0.4, 0.32, armpit_x, armpit_y)
    if garment.kind is Kind.DRESS:
        waist_y, waist_x = 0.92, 0.29
        hem_x = (0.36 + 0.21 * (hem - waist_y)) * flare
        path.quadTo(waist_x + 0.02, 0.74, waist_x, waist_y)
        path.quadTo(waist_x + 0.12, waist_y + 0.22, hem_x, hem - 0.03)
        path.quadTo(0, hem + 0.09, -hem_x, hem - 0.03)
        path.quadTo(-waist_x - 0.12, waist_y + 0.22, -waist_x, waist_y)
        path.quadTo(-waist_x - 0.02, 0.74, -armpit_x, armpit_y)
    else:
        hem_x = (0.38 if garment.kind is Kind.TOPTEE else 0.42) * flare
        drop = 0.08 if garment.kind is Kind.SHIRT else 0.02
        path.quadTo(0.355, 0.75, hem_x, hem - drop)
        path.quadTo(hem_x * 0.5, hem + drop, 0, hem)
        path.quadTo(-hem_x * 0.5, hem + drop, -hem_x, hem - drop)
        path.quadTo(-0.355, 0.75, -armpit_x, armpit_y)
    path.quadTo(-armpit_x + 0.06 + inset * 0.4, 0.32, -shoulder_x, shoulder_y)
    path.close()
    return path, max(hem_x, 0.45)


def _sleeve(length: float, side: int, angle_degrees: float) -> SleeveCut:
    """Return a sleeve hanging from the shoulder; side is -1 for the left of the picture, 1 for the right."""
    angle = math.radians(angle_degrees)
    along = (math.sin(angle), math.cos(angle))
    across = (math.cos(angle), -math.sin(angle))
    half = 0.15 - 0.06 * min(length, 1.2) / 1.2
    centre = (0.39, 0.27)
    tip = (centre[0] + along[0] * length, centre[1] + along[1] * length)

    def at(point: tuple[float, float], outwards: float, back: float = 0.0) -> tuple[float, float]:
        x = point[0] + across[0] * outwards - along[0] * back
        y = point[1] + across[1] * outwards - along[1] * back
        return side * x, y

    path = skia.Path()
    path.moveTo(side * (SHOULDER[0] - 0.08), SHOULDER[1] - 0.012)
    path.quadTo(*at(centre, 0.17, 0.12), *at(centre, 0.165))
    path.lineTo(*at(tip, half))
    path.lineTo(*at(tip, -half))
    path.lineTo(side * ARMPIT[0] * 0.97, ARMPIT[1] + 0.03)
    path.lineTo(side * 0.3, 0.3)
    path.close()
    cuff = skia.Path()
    cuff_height = 0.05 if length < 1 else 0.1
    cuff.moveTo(*at(tip, half, cuff_height))
    cuff.lineTo(*at(tip, -half, cuff_height))
    return SleeveCut(path, cuff, -side * angle_degrees)


def _inside(neckline: Neckline) -> skia.Path:
    """Return the inner back: what shows between the back of the neck and the front of the neckline."""
    width = NECK_HALF_WIDTHS[neckline]
    path = skia.Path()
    path.moveTo(-width, 0)
    path.quadTo(0, 0.09, width, 0)
    path.lineTo(width * 0.95, _front_depth(neckline) + 0.05)
    path.lineTo(-width * 0.95, _front_depth(neckline) + 0.05)
    path.close()
    return path


def _seams(garment: Garment, hem: float, flare: float, top: float) -> skia.Path:
    path = skia.Path()
    if garment.kind is Kind.DRESS:
        path.moveTo(-0.292, 0.92)
        path.quadTo(0, 0.96, 0.292, 0.92)
    if garment.kind is Kind.SHIRT:
        path.moveTo(-0.05, top + 0.02)
        path.lineTo(-0.05, hem)
        path.moveTo(0.05, top + 0.02)
        path.lineTo(0.05, hem)
    if garment.kind is Kind.TOPTEE:
        path.moveTo(-0.37 * flare, hem - 0.07)
        path.quadTo(0, hem - 0.045, 0.37 * flare, hem - 0.07)
    return path


def _collar(neckline: Neckline) -> tuple[skia.Path, ...]:
    """Return the pieces sewn to the neckline, closed outlines."""
    if neckline is Neckline.TURTLE:
        roll = skia.Path()
        roll.moveTo(-0.175, 0.05)
        roll.quadTo(-0.145, -0.1, -0.155, -0.2)
        roll.quadTo(0, -0.235, 0.155, -0.2)
        roll.quadTo(0.145, -0.1, 0.175, 0.05)
        roll.quadTo(0, 0.13, -0.175, 0.05)
        roll.close()
        return (roll,)
    if neckline in COLLARS:
        return tuple(_collar_half(neckline, side) for side in (-1, 1))
    return ()


def _collar_half(neckline: Neckline, side: int) -> skia.Path:
    outlines = {
        Neckline.POINTED_COLLAR: [(0.15, -0.06), (0.235, 0.045), (0.2, 0.235), (0.0, 0.115), (0.07, 0.06)],
        Neckline.BAND_COLLAR: [(0.155, -0.115), (0.17, 0.0), (0.09, 0.085), (0.0, 0.115), (0.0, 0.02), (0.1, -0.02)],
        Neckline.OPEN_COLLAR: [(0.15, -0.05), (0.25, 0.06), (0.28, 0.2), (0.19, 0.21), (0.23, 0.28), (0.0, 0.47)],
    }
    path = skia.Path()
    for number, (x, y) in enumerate(outlines[neckline]):
        (path.lineTo if number else path.moveTo)(side * x, y)
    path.close()
    return path
