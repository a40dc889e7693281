"""Every mode of Pillow becomes what a person sees on a screen, or is refused by name; docs/images.md says which."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import InvalidImage
from cirrus_client.image.decode import FORMATS, decode
from cirrus_client.image.inputs import image_bytes
from cirrus_client.image.modes import CONVERTED, KEPT, on_white
from cirrus_client.image.preprocess import PreprocessSpec, Transparency, preprocess
from tests.bombs import png, png_chunk, tiff

PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
MODES = dict(re.findall(r"^\| `([\w;]+)` \| [^|]* \| ([^|]*?) \|$", PAGE, re.MULTILINE))
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B")
COLOURS = np.array(
    [[[0, 0, 0], [255, 255, 255], [128, 128, 128], [200, 30, 40], [20, 160, 60], [30, 60, 220]]], np.uint8
)
GREYS = np.linspace(0, 255, 24, dtype=np.uint8).reshape(4, 6)


def picture(mode: str) -> Image.Image:
    """Return a picture of Pillow's mode: COLOURS, or GREYS where the mode has no colour."""
    colours, greys = Image.fromarray(COLOURS), Image.fromarray(GREYS)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(colours, *profiles, outputMode="LAB")
    if mode in SIXTEEN_BITS:
        levels = GREYS.astype(">u2" if mode == "I;16B" else "<u2") * 257
        return Image.frombytes(mode, greys.size, levels.tobytes())
    if mode == "F":
        return Image.fromarray(GREYS.astype(np.float32) / 255)
    if mode == "1":
        return greys.convert("1", dither=Image.Dither.NONE)
    steps = {"PA": ("P", "PA"), "RGBa": ("RGBA", "RGBa"), "La": ("LA", "La")}.get(mode, (mode,))
    made = greys if mode in ("LA", "La", "I") else colours
    for step in steps:
        made = made.convert(step, palette=Image.Palette.ADAPTIVE) if step == "P" else made.convert(step)
    return made


def expected(mode: str) -> np.ndarray:
    """Return the RGB levels that a person sees of `picture`."""
    if mode == "1":
        return np.where(GREYS[..., None] > 127, 255, 0).repeat(3, axis=-1)
    of_greys = mode in ("LA", "La", "F") or mode in SIXTEEN_BITS
    if mode == "L":
        return np.asarray(Image.fromarray(COLOURS).convert("L").convert("RGB"))
    return GREYS[..., None].repeat(3, axis=-1) if of_greys else COLOURS


def test_the_page_says_what_is_done_with_every_mode() -> None:
    kept = {mode for mode, done in MODES.items() if done == "kept"}
    converted = {mode: done.split("`")[1] for mode, done in MODES.items() if done.startswith("becomes `")}
    assert kept == KEPT
    assert converted == CONVERTED | dict.fromkeys(("LAB",), "RGB") | dict.fromkeys((*SIXTEEN_BITS, "F"), "L")
    assert {mode for mode, done in MODES.items() if done.startswith("refused")} == {"I"}
    assert len(MODES) == len(kept) + len(converted) + 1


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "I"])
def test_a_pil_image_of_any_mode_is_what_a_person_sees(mode: str) -> None:
    given = picture(mode)
    assert given.mode == mode or mode == "I;16L"
    seen = np.asarray(decode(image_bytes(given)).convert("RGB")).astype(int)
    assert np.abs(seen - expected(mode)).max() <= (0 if mode not in ("YCbCr", "HSV", "LAB") else 9)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")),
        *(("TIFF", mode) for mode in ("I;16", "I;16B", "F")),
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "P"), ("BMP", "1")),
    ],
)
def test_a_pil_image_is_the_same_as_its_file(kind: str, mode: str, encoder: LocalEncoder) -> None:
    file = io.BytesIO()
    picture(mode).resize((48, 32), Image.Resampling.NEAREST).save(file, kind)
    opened = Image.open(file)
    assert opened.mode == mode
    from_memory, from_file = encoder.encode_targets([opened, file.getvalue()])
    np.testing.assert_array_equal(from_memory, from_file)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("where", ["EXIF", "XMP"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_pil_image_is_turned_upright_like_its_file(kind: str, where: str, orientation: int) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    packet = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    if where == "EXIF":
        exif[0x0112] = orientation
    elif kind == "TIFF":
        exif[700] = packet
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((60, 40))
    options = {"xmp": packet} if where == "XMP" and kind != "TIFF" else {}
    if kind == "PNG" and options:
        from PIL.PngImagePlugin import PngInfo

        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode(), zip=True)
        options = {"pnginfo": texts}
    upright.save(file, kind, exif=exif, **options)
    turned = decode(file.getvalue())
    assert (turned.size == upright.size) == (orientation < 5)
    in_memory = decode(image_bytes(Image.open(file)))
    np.testing.assert_array_equal(np.asarray(in_memory.convert("RGB")), np.asarray(turned.convert("RGB")))
    plain = io.BytesIO()
    upright.save(plain, kind)
    assert (np.asarray(turned).tobytes() == np.asarray(decode(plain.getvalue())).tobytes()) == (orientation == 1)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.arange(12, dtype=np.int32).reshape(3, 4), "mode I, which does not say which level is white"),
        (np.array([[0.0, 255.0]], np.float32), "mode F with levels from 0 to 255"),
        (np.array([[-0.5, 0.5]], np.float32), "mode F with levels from -0.5 to 0.5"),
        (np.array([[np.nan, 0.5]], np.float32), "mode F with levels from nan to nan"),
    ],
)
def test_levels_without_a_white_are_refused_by_the_name_of_their_mode(levels: np.ndarray, message: str) -> None:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "TIFF")
    with pytest.raises(InvalidImage, match=message):
        decode(file.getvalue())
    with pytest.raises(InvalidImage, match=message):
        image_bytes(Image.fromarray(levels))


def grey_tiff(levels: np.ndarray, bits: int, photometric: int, kind: int = 1) -> bytes:
    packed = levels.astype(f"<{'f4' if kind == 3 else 'u2'}").tobytes()
    if bits == 12:
        packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in levels.reshape(-1, 2).tolist())
    shape = [(256, 3, 1, levels.shape[1]), (257, 3, 1, levels.shape[0]), (258, 3, 1, bits), (262, 3, 1, photometric)]
    strip = [(273, 4, 1, 8), (279, 4, 1, len(packed)), (339, 3, 1, kind)]
    return tiff([*shape, *strip], packed)


def test_twelve_bits_and_inverted_greys_keep_their_black_and_white() -> None:
    ramp = np.array([[0, 1024, 2048, 4095]])
    np.testing.assert_array_equal(np.asarray(decode(grey_tiff(ramp, 12, 1))), [[0, 64, 128, 255]])
    np.testing.assert_array_equal(np.asarray(decode(grey_tiff(ramp * 16, 16, 1))), [[0, 64, 128, 255]])
    np.testing.assert_array_equal(np.asarray(decode(grey_tiff(ramp * 16, 16, 0))), [[255, 191, 127, 0]])
    np.testing.assert_array_equal(np.asarray(decode(grey_tiff(ramp / 4096, 32, 0, kind=3))), [[255, 191, 127, 0]])


def sketch(mode: str) -> Image.Image:
    """Return black lines on a transparent ground, whose hidden colour is black as well."""
    alpha = np.zeros((64, 64), np.uint8)
    alpha[::8] = 255
    drawn = Image.new("RGBA", (64, 64))
    drawn.putalpha(Image.fromarray(alpha))
    for step in {"P": (), "PA": (), "La": ("LA", "La")}.get(mode, (mode,)):
        drawn = drawn.convert(step)
    drawn = drawn.quantize(4) if mode in ("P", "PA") else drawn
    return drawn.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGBa", "La", "PA"])
def test_a_transparent_sketch_is_black_on_white_where_the_recipe_says_so(mode: str) -> None:
    given = sketch(mode)
    lines = np.zeros((64, 64), bool)
    lines[::8] = True
    white = PreprocessSpec(size_px=64, mean=(0, 0, 0), std=(1, 1, 1), transparency=Transparency.WHITE)
    seen = preprocess(image_bytes(given), white)
    np.testing.assert_array_equal(seen, np.broadcast_to(np.where(lines, 0, 1), (3, 64, 64)))
    dropped = preprocess(image_bytes(given), white.model_copy(update={"transparency": Transparency.DROPPED}))
    assert dropped.max() == 0


@pytest.mark.parametrize(
    ("depth", "row", "clear"),
    [
        (1, bytes([0b01_01_00_00]), 1),
        (2, bytes([0b00_01_10_11, 0b00_01_10_11]), 1),
        (4, bytes([0x05, 0xAF, 0x05, 0xAF]), 5),
        (8, bytes([0, 85, 170, 255] * 2), 85),
        (16, struct.pack(">8H", *[0, 21845, 43690, 65535] * 2), 21845),
    ],
)
def test_a_clear_level_of_a_png_is_white_whatever_its_bit_depth(depth: int, row: bytes, clear: int) -> None:
    chunks = png_chunk(b"tRNS", struct.pack(">H", clear)), png_chunk(b"IDAT", zlib.compress(b"\0" + row))
    seen = on_white(decode(png(8, 1, *chunks, depth=depth, colour=0))).convert("L")
    expected = [0, 255, 170, 255] * 2 if depth > 1 else [0, 255, 0, 255, 0, 0, 0, 0]
    np.testing.assert_array_equal(np.asarray(seen), [expected])


def test_a_clear_colour_of_sixteen_bits_is_white() -> None:
    row = struct.pack(">6H", 0, 0, 0, 51400, 257, 257)
    chunks = png_chunk(b"tRNS", struct.pack(">3H", 51400, 257, 257)), png_chunk(b"IDAT", zlib.compress(b"\0" + row))
    np.testing.assert_array_equal(np.asarray(on_white(decode(png(2, 1, *chunks, depth=16)))), [[[0] * 3, [255] * 3]])


def test_dropping_the_transparency_of_a_palette_is_not_worth_a_warning() -> None:
    spec = PreprocessSpec(size_px=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert preprocess(image_bytes(sketch("P")), spec).shape == (3, 32, 32)


def test_the_page_names_every_format_that_is_decoded() -> None:
    assert all(name in PAGE.upper() for name in FORMATS)
