"""A photo of a garment: cloth, print, folds, seams, drawn with Skia in a scene."""

from __future__ import annotations

import numpy as np
import skia
from PIL import Image

from cirrus_demo.attributes import Colour, Garment
from cirrus_demo.palette import RGB, dyed, ink, shade
from cirrus_demo.prints import motif
from cirrus_demo.scene import draw_hanger, draw_room, expose, frame, place
from cirrus_demo.silhouette import Cut, cut

SEAM_WIDTH = 0.009


def render(garment: Garment, seed: int, size_px: int) -> Image.Image:
    """Return a photo of the garment, RGB, longer side size_px; the seed draws everything but the description.

    Pose, proportions, dye, background, light, aspect ratio (square to 5:7), sensor noise and JPEG artefacts differ
    between seeds. The same arguments give the same pixels.
    """
    rng = np.random.default_rng((seed, 1))
    width, height = frame(rng, size_px)
    surface = skia.Surface.MakeRasterN32Premul(width, height)
    canvas = surface.getCanvas()
    outlines = cut(garment, rng)
    hung = bool(rng.random() < 0.4)
    draw_room(canvas, width, height, rng, hung=hung)
    place(canvas, width, height, outlines, rng)
    _draw_shadow(canvas, outlines, hung=hung)
    if hung:
        draw_hanger(canvas, rng)
    _draw_garment(canvas, garment, outlines, rng)
    pixels = surface.makeImageSnapshot().toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3]
    return expose(pixels, rng)


def _draw_garment(canvas: skia.Canvas, garment: Garment, outlines: Cut, rng: np.random.Generator) -> None:
    cloth = dyed(garment.colour, rng)
    printed = None if garment.second_colour is None else dyed(garment.second_colour, rng)
    shapes = motif(garment.pattern, rng)
    seam = _seam_colour(garment.colour, cloth)

    canvas.drawPath(outlines.inside, _fill(shade(cloth, 0.62)))
    for sleeve in outlines.sleeves:
        _draw_cloth(canvas, sleeve.outline, cloth, printed, shapes, rng, turn_degrees=sleeve.angle_degrees)
        canvas.drawPath(sleeve.outline, _stroke(seam))
        canvas.drawPath(sleeve.cuff, _stroke(seam))
    _draw_cloth(canvas, outlines.body, cloth, printed, shapes, rng, turn_degrees=0)
    _draw_folds(canvas, outlines, rng)
    canvas.drawPath(outlines.seams, _stroke(seam))
    canvas.drawPath(outlines.body, _stroke(seam))
    for piece in outlines.collar:
        _draw_cloth(canvas, piece, shade(cloth, 1.04), printed, shapes, rng, turn_degrees=12)
        canvas.drawPath(piece, _stroke(seam, 1.3))
    button = (236, 228, 210) if garment.colour is not Colour.WHITE else (120, 112, 104)
    for x, y in outlines.buttons:
        canvas.drawCircle(x, y, 0.022, _fill(button))
        canvas.drawCircle(x, y, 0.022, _stroke(shade(button, 0.6), 0.6))


def _draw_cloth(
    canvas: skia.Canvas,
    outline: skia.Path,
    cloth: RGB,
    printed: RGB | None,
    shapes: skia.Path,
    rng: np.random.Generator,
    *,
    turn_degrees: float,
) -> None:
    """Fill an outline with dyed and printed cloth, rounder towards its sides."""
    canvas.save()
    canvas.clipPath(outline, doAntiAlias=True)
    canvas.drawPath(outline, _fill(cloth))
    if printed is not None:
        canvas.save()
        canvas.rotate(turn_degrees)
        canvas.drawPath(shapes, _fill(printed))
        canvas.restore()
    bounds = outline.getBounds()
    light = float(rng.uniform(0.3, 0.7))
    shader = skia.GradientShader.MakeLinear(
        points=[(bounds.left(), 0), (bounds.right(), 0)],
        colors=[ink((0, 0, 0), 0.22), ink((0, 0, 0), 0.0), ink((0, 0, 0), 0.2)],
        positions=[0.0, light, 1.0],
    )
    canvas.drawPath(outline, skia.Paint(Shader=shader, AntiAlias=True))
    canvas.restore()


def _draw_folds(canvas: skia.Canvas, outlines: Cut, rng: np.random.Generator) -> None:
    """Lay soft dark and light folds that fan out towards the hem."""
    canvas.save()
    canvas.clipPath(outlines.body, doAntiAlias=True)
    for number in range(int(rng.integers(4, 8))):
        bottom_x = float(rng.uniform(-0.95, 0.95)) * outlines.half_width
        top_y = float(rng.uniform(0.45, max(0.55, outlines.hem * 0.6)))
        path = skia.Path()
        path.moveTo(bottom_x * 0.45, top_y)
        path.quadTo(bottom_x * 0.75, (top_y + outlines.hem) / 2, bottom_x, outlines.hem + 0.05)
        tone, alpha = ((0, 0, 0), 0.16) if number % 2 else ((255, 255, 255), 0.13)
        paint = skia.Paint(
            Color=ink(tone, alpha),
            Style=skia.Paint.kStroke_Style,
            StrokeWidth=float(rng.uniform(0.035, 0.08)),
            AntiAlias=True,
            MaskFilter=skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, 0.025),
        )
        canvas.drawPath(path, paint)
    canvas.restore()


def _draw_shadow(canvas: skia.Canvas, outlines: Cut, *, hung: bool) -> None:
    """A wall is further behind a hung garment than the table is below one that lies flat."""
    distance, blur, alpha = (0.07, 0.06, 0.22) if hung else (0.03, 0.025, 0.34)
    paint = skia.Paint(
        Color=ink((20, 20, 30), alpha),
        AntiAlias=True,
        MaskFilter=skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur),
    )
    canvas.save()
    canvas.translate(distance, distance)
    for piece in (*(sleeve.outline for sleeve in outlines.sleeves), outlines.body):
        canvas.drawPath(piece, paint)
    canvas.restore()


def _seam_colour(colour: Colour, cloth: RGB) -> RGB:
    return (96, 96, 104) if colour is Colour.BLACK else shade(cloth, 0.66)


def _fill(rgb: RGB) -> skia.Paint:
    return skia.Paint(Color=ink(rgb), AntiAlias=True)


def _stroke(rgb: RGB, weight: float = 1.0) -> skia.Paint:
    return skia.Paint(
        Color=ink(rgb),
        Style=skia.Paint.kStroke_Style,
        StrokeWidth=SEAM_WIDTH * weight,
        StrokeJoin=skia.Paint.kRound_Join,
        AntiAlias=True,
    )
