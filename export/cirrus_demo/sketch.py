"""A line drawing of a garment, as a person would sketch it: no colour, the pattern as outlines."""

from __future__ import annotations

import numpy as np
import skia
from PIL import Image

from cirrus_demo.attributes import Garment
from cirrus_demo.palette import ink
from cirrus_demo.prints import motif
from cirrus_demo.scene import frame, place, through_jpeg
from cirrus_demo.silhouette import cut

PAPER = (250, 249, 245)


def sketch(garment: Garment, seed: int, size_px: int) -> Image.Image:
    """Return a pencil sketch of the garment, RGB, longer side size_px.

    It shows kind, pattern, sleeve, neckline and length but no colour. Pose and the hand's tremor come from the seed;
    the same arguments give the same pixels.
    """
    rng = np.random.default_rng((seed, 2))
    width, height = frame(rng, size_px)
    surface = skia.Surface.MakeRasterN32Premul(width, height)
    canvas = surface.getCanvas()
    canvas.clear(ink(PAPER))
    outlines = cut(garment, rng)
    place(canvas, width, height, outlines, rng)
    shapes = motif(garment.pattern, rng)
    graphite = int(rng.integers(25, 80))
    weight = float(rng.uniform(0.8, 1.3))
    tremor = float(rng.uniform(0.004, 0.01))

    def pen(strength: float, *, stroke_length: float = 0.07) -> skia.Paint:
        return skia.Paint(
            Color=ink((graphite, graphite, graphite + 4), min(1.0, strength)),
            Style=skia.Paint.kStroke_Style,
            StrokeWidth=0.017 * weight * (0.55 + 0.45 * strength),
            StrokeCap=skia.Paint.kRound_Cap,
            StrokeJoin=skia.Paint.kRound_Join,
            AntiAlias=True,
            PathEffect=skia.DiscretePathEffect.Make(
                stroke_length, tremor * stroke_length / 0.07, int(rng.integers(2**31))
            ),
        )

    print_pen = pen(0.55, stroke_length=0.018)
    paper = skia.Paint(Color=ink(PAPER), AntiAlias=True)
    canvas.drawPath(outlines.inside, pen(0.8))
    for sleeve in outlines.sleeves:
        _draw_piece(canvas, sleeve.outline, shapes, sleeve.angle_degrees, paper, print_pen, pen(1.0))
        canvas.drawPath(sleeve.cuff, pen(0.6))
    _draw_piece(canvas, outlines.body, shapes, 0.0, paper, print_pen, pen(1.0))
    if rng.random() < 0.5:
        canvas.drawPath(outlines.body, pen(0.6))
    canvas.drawPath(outlines.seams, pen(0.6))
    for piece in outlines.collar:
        canvas.drawPath(piece, paper)
        canvas.drawPath(piece, pen(1.0))
    for x, y in outlines.buttons:
        canvas.drawCircle(x, y, 0.022, pen(0.7))
    pixels = surface.makeImageSnapshot().toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3]
    return through_jpeg(Image.fromarray(np.ascontiguousarray(pixels)), quality=int(rng.integers(75, 96)))


def _draw_piece(
    canvas: skia.Canvas,
    outline: skia.Path,
    shapes: skia.Path,
    turn_degrees: float,
    paper: skia.Paint,
    print_pen: skia.Paint,
    pen: skia.Paint,
) -> None:
    canvas.drawPath(outline, paper)
    canvas.save()
    canvas.clipPath(outline, doAntiAlias=True)
    canvas.rotate(turn_degrees)
    canvas.drawPath(shapes, print_pen)
    canvas.restore()
    canvas.drawPath(outline, pen)
