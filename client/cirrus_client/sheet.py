"""A contact sheet: the query and its results as one picture that a person can look at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from cirrus_client.errors import ItemError, UnsupportedFormat
from cirrus_client.files import atomic_path
from cirrus_client.image.decode import decode
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.image.modes import on_white
from cirrus_client.retriever import Match

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".pdf")
_TILE_PX = 220
_CAPTION_PX = 44
_GAP_PX = 12
_COLUMNS = 6
_BACKGROUND = "white"
_QUERY_FRAME = "#1f6feb"
_RESULT_FRAME = "#d0d7de"
_PICTURE_SIZE = (_TILE_PX - 8, _TILE_PX - 8)
log = logging.getLogger(__name__)


def contact_sheet(image: ImageInput | None, text: str | None, matches: Sequence[Match]) -> Image.Image:
    """Return the query (framed in blue) followed by its results with rank, score and file name.

    A result whose image can't be read is a grey tile, and a warning says how many there are.
    """
    found = [_picture(match.image) for match in matches]
    lost = [match.image for match, picture in zip(matches, found, strict=True) if picture is None]
    if lost:
        log.warning(
            "%d of %d images can't be shown, like %s: --root says where they are", len(lost), len(found), lost[0]
        )
    tiles = [_tile(None if image is None else _picture(image), f"query: {text or 'image alone'}", _QUERY_FRAME)]
    grey = Image.new("RGB", _PICTURE_SIZE, _RESULT_FRAME)
    tiles += [
        _tile(picture or grey, f"{match.rank}.  {match.score:.3f}\n{Path(match.id).name}", _RESULT_FRAME)
        for match, picture in zip(matches, found, strict=True)
    ]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    step_x, step_y = _TILE_PX + _GAP_PX, _TILE_PX + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * step_x + _GAP_PX, rows * step_y + _GAP_PX), _BACKGROUND)
    for position, tile in enumerate(tiles):
        row, column = divmod(position, columns)
        sheet.paste(tile, (_GAP_PX + column * step_x, _GAP_PX + row * step_y))
    return sheet


def _tile(picture: Image.Image | None, caption: str, frame: str) -> Image.Image:
    tile = Image.new("RGB", (_TILE_PX, _TILE_PX + _CAPTION_PX), _BACKGROUND)
    draw = ImageDraw.Draw(tile)
    if picture is not None:
        tile.paste(picture, ((_TILE_PX - picture.width) // 2, (_TILE_PX - picture.height) // 2))
    draw.rectangle((0, 0, _TILE_PX - 1, _TILE_PX - 1), outline=frame, width=3)
    font = ImageFont.load_default(size=13)
    draw.multiline_text((2, _TILE_PX + 4), _wrapped(caption, font), fill="black", font=font)
    return tile


def _picture(image: ImageInput) -> Image.Image | None:
    try:
        return ImageOps.contain(on_white(decode(image_bytes(image))).convert("RGB"), _PICTURE_SIZE)
    except ItemError:
        return None


def _wrapped(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Break a caption into two lines that fit the tile's width."""
    lines = [""]
    for part in caption.replace("\n", " \n ").split(" "):
        if part == "\n" or font.getlength(f"{lines[-1]} {part}") > _TILE_PX:
            lines.append("" if part == "\n" else part)
        else:
            lines[-1] = f"{lines[-1]} {part}".strip()
    return "\n".join(lines[:2])


def check_suffix(path: Path) -> None:
    """Raise UnsupportedFormat if a sheet can't be written in the format that the path's suffix names."""
    if path.suffix.lower() not in SUFFIXES:
        raise UnsupportedFormat(
            f"{path}: '{path.suffix}' names no image format that is supported; use one of {', '.join(SUFFIXES)}",
            path=path,
            supported=SUFFIXES,
        )


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet in the format that the path's suffix names. Raises UnsupportedFormat, and OSError."""
    check_suffix(path)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format=Image.registered_extensions()[path.suffix.lower()])
