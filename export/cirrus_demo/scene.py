"""Where and how a garment is photographed: room, pose, light, sensor and JPEG."""

from __future__ import annotations

import io

import numpy as np
import skia
from numpy.typing import NDArray
from PIL import Image

from cirrus_demo.attributes import pick
from cirrus_demo.palette import WALLS, ink, shade
from cirrus_demo.silhouette import Cut

ASPECT_RATIOS = (1.0, 4 / 5, 3 / 4, 3 / 4, 5 / 7)
"""Width over height."""
MARGIN = 0.86
"""The part of the frame that a garment fills at most."""
TALLEST, WIDEST = 2.9, 2.05
"""Garment units, hanger included."""


def frame(rng: np.random.Generator, size_px: int) -> tuple[int, int]:
    """Return width and height of a picture whose longer side is size_px."""
    return round(size_px * pick(rng, ASPECT_RATIOS)), size_px


def place(canvas: skia.Canvas, width: int, height: int, outlines: Cut, rng: np.random.Generator) -> None:
    """Let the canvas draw in garment units: centred, then turned, scaled and shifted a little.

    Large garments are taken from further away, as a photographer would, but not so far that all look equally large.
    """
    tall = outlines.hem + 0.3
    zoom = min(height / (0.35 * TALLEST + 0.65 * tall), width / (0.35 * WIDEST + 0.65 * 2 * outlines.reach))
    scale = MARGIN * zoom * float(rng.uniform(0.88, 1.0))
    slack_x, slack_y = 0.05 * width, max(0.02 * height, (height - tall * scale) * 0.25)
    canvas.translate(
        width / 2 + float(rng.uniform(-slack_x, slack_x)), height / 2 + float(rng.uniform(-slack_y, slack_y))
    )
    canvas.rotate(float(rng.uniform(-7, 7)))
    canvas.scale(scale, scale)
    canvas.translate(0, -(outlines.hem - 0.15) / 2)


def draw_room(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator, *, hung: bool) -> None:
    """Fill the canvas with a wall for a hung garment, or a table for one that lies flat."""
    wall = pick(rng, WALLS)
    canvas.clear(ink(wall))
    if not hung and rng.random() < 0.45:
        _draw_planks(canvas, width, height, rng)
    angle = float(rng.uniform(0, 2 * np.pi))
    reach = max(width, height) * 0.6
    dx, dy = reach * np.cos(angle), reach * np.sin(angle)
    shader = skia.GradientShader.MakeLinear(
        points=[(width / 2 - dx, height / 2 - dy), (width / 2 + dx, height / 2 + dy)],
        colors=[ink((255, 255, 255), 0.22), ink((0, 0, 0), 0.0), ink((0, 0, 0), 0.14)],
    )
    canvas.drawPaint(skia.Paint(Shader=shader))
    if hung:
        floor = height * float(rng.uniform(0.86, 0.95))
        canvas.drawRect(skia.Rect.MakeLTRB(0, floor, width, height), skia.Paint(Color=ink(shade(wall, 0.8))))
        canvas.drawRect(
            skia.Rect.MakeLTRB(0, floor - height * 0.012, width, floor), skia.Paint(Color=ink(shade(wall, 1.06)))
        )


def _draw_planks(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    wood = pick(rng, ((206, 178, 142), (186, 160, 132), (222, 204, 178), (160, 148, 138)))
    plank = height / float(rng.uniform(4, 8))
    top = -plank * float(rng.random())
    while top < height:
        tone = shade(wood, float(rng.uniform(0.93, 1.05)))
        canvas.drawRect(skia.Rect.MakeLTRB(0, top, width, top + plank), skia.Paint(Color=ink(tone)))
        canvas.drawRect(skia.Rect.MakeLTRB(0, top, width, top + plank * 0.03), skia.Paint(Color=ink(shade(wood, 0.72))))
        top += plank


def draw_hanger(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """Draw a hanger behind the shoulders, in garment units."""
    colour = pick(rng, ((150, 112, 72), (90, 90, 96), (168, 160, 150)))
    path = skia.Path()
    path.moveTo(-0.4, 0.1)
    path.quadTo(-0.14, -0.02, 0, -0.14)
    path.quadTo(0.14, -0.02, 0.4, 0.1)
    path.moveTo(0, -0.14)
    path.lineTo(0, -0.24)
    path.cubicTo(0.12, -0.27, 0.07, -0.42, -0.05, -0.36)
    paint = skia.Paint(
        Color=ink(colour),
        Style=skia.Paint.kStroke_Style,
        StrokeWidth=0.03,
        StrokeCap=skia.Paint.kRound_Cap,
        AntiAlias=True,
    )
    canvas.drawPath(path, paint)


def expose(pixels: NDArray[np.uint8], rng: np.random.Generator) -> Image.Image:
    """Return the picture that a camera makes of uint8 [H, W, 3]: exposure, tint, vignette, noise, JPEG."""
    height, width = pixels.shape[:2]
    gain = rng.uniform(0.92, 1.12) * (1 + rng.uniform(-0.035, 0.035, 3))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    vignette = 1 - float(rng.uniform(0.02, 0.14)) * (x * x + y * y) / 2
    noise = rng.standard_normal((height, width), dtype=np.float32) * float(rng.uniform(1.0, 4.0))
    exposed = pixels * (vignette[..., None] * gain.astype(np.float32)) + noise[..., None]
    picture = Image.fromarray(np.clip(exposed, 0, 255).astype(np.uint8))
    return through_jpeg(picture, quality=int(rng.integers(70, 96)))


def through_jpeg(picture: Image.Image, *, quality: int) -> Image.Image:
    """Return the picture after encoding and decoding."""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    with Image.open(encoded) as decoded:
        return decoded.convert("RGB")
