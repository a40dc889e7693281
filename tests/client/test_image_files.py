"""What does not decide the pixels of a file does not decide its fate, and what is broken is an InvalidImage."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cirrus_client.errors import InvalidImage
from cirrus_client.image.decode import decode
from cirrus_client.image.preprocess import Decoding, Pad, PreprocessSpec, Transparency, preprocess
from tests.bombs import bmp_of_run_lengths, jpeg_segment, png_chunk, tiff_of_tags

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8), "RGBA")


def saved(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    file = io.BytesIO()
    (image.convert("RGB") if kind in ("JPEG", "BMP") and image is NOISE else image).save(file, kind, **options)
    return file.getvalue()


def in_jpeg(*segments: bytes) -> bytes:
    file = saved("JPEG")
    return file[:2] + b"".join(segments) + file[2:]


def in_png(*chunks: bytes) -> bytes:
    file = saved("PNG")
    return file[:33] + b"".join(chunks) + file[33:]


def in_webp(*chunks: bytes) -> bytes:
    """Return a WebP with more chunks, in the extended form, whose flags announce them."""
    file = saved("WEBP", lossless=True, exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    whole = file + b"".join(chunks)
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]


def in_gif(*blocks: bytes) -> bytes:
    file = saved("GIF", NOISE.convert("L"))
    place = file.index(b",", 13 + 3 * 256)
    return file[:place] + b"".join(blocks) + file[place:]


def inflating() -> bytes:
    return zlib.compress(b"x" * 50_000_000)


def badly_summed(chunk: bytes) -> bytes:
    return chunk[:-4] + b"\0\0\0\0"


BROKEN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x07\xff\xff\xff\xff" * 9
ODD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JPEG: damaged EXIF": ("JPEG", lambda: in_jpeg(jpeg_segment(0xE1, BROKEN_EXIF))),
    "JPEG: half an ICC profile": ("JPEG", lambda: in_jpeg(jpeg_segment(0xE2, b"ICC_PROFILE\0\x01\x09x"))),
    "JPEG: a broken list of pictures": ("JPEG", lambda: in_jpeg(jpeg_segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"))),
    "JPEG: Photoshop's data end early": ("JPEG", lambda: in_jpeg(jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"))),
    "JPEG: bytes between segments": ("JPEG", lambda: in_jpeg(jpeg_segment(0xFE, b"hello"), b"junk\xff\xff\0")),
    "JPEG: a film behind the image": ("JPEG", lambda: in_jpeg() + b"\xff\xda" * 5000),
    "PNG: a text that unpacks to 50 MB": ("PNG", lambda: in_png(png_chunk(b"zTXt", b"Comment\0\0" + inflating()))),
    "PNG: a large text": ("PNG", lambda: in_png(png_chunk(b"tEXt", b"Comment\0" + b"x" * 20_000_000))),
    "PNG: many texts": ("PNG", lambda: in_png(*[png_chunk(b"tEXt", b"a\0" + b"x" * 1000)] * 50_000)),
    "PNG: a broken ICC profile": ("PNG", lambda: in_png(png_chunk(b"iCCP", b"icc\0\x07nonsense"))),
    "PNG: a large ICC profile": (
        "PNG",
        lambda: in_png(png_chunk(b"iCCP", b"icc\0\0" + inflating())),
    ),
    "PNG: damaged EXIF": ("PNG", lambda: in_png(png_chunk(b"eXIf", BROKEN_EXIF))),
    "PNG: a wrong sum of a comment": ("PNG", lambda: in_png(badly_summed(png_chunk(b"tEXt", b"a\0b")))),
    "PNG: an empty gamma": ("PNG", lambda: in_png(png_chunk(b"gAMA", b""), png_chunk(b"pHYs", b"1"))),
    "PNG: a broken animation": ("PNG", lambda: in_png(png_chunk(b"acTL", b""), png_chunk(b"fcTL", b"?"))),
    "WEBP: damaged EXIF": ("WEBP", lambda: in_webp(struct.pack("<4sI", b"EXIF", 90) + BROKEN_EXIF[:90])),
    "WEBP: many chunks": ("WEBP", lambda: in_webp(struct.pack("<4sI", b"note", 2) * 20_000)),
    "GIF: a comment of 5 MB": ("GIF", lambda: in_gif(b"!\xfe" + (b"\xff" + b"x" * 255) * 20_000 + b"\0")),
    "GIF: an unknown extension": ("GIF", lambda: in_gif(b"!\x42\x03abc\0")),
    "GIF: bytes between blocks": ("GIF", lambda: in_gif(b"\0\0")),
    "TIFF: damaged EXIF": ("TIFF", lambda: saved("TIFF", tiffinfo={34665: 7}, compression="tiff_lzw")),
    "TIFF: a damaged profile": ("TIFF", lambda: saved("TIFF", icc_profile=b"nonsense")),
}


@pytest.mark.parametrize("name", ODD)
def test_what_does_not_decide_the_pixels_changes_nothing(name: str) -> None:
    kind, make = ODD[name]
    plain = {"GIF": in_gif, "WEBP": in_webp}.get(kind, lambda: saved(kind))()
    expected, found = decode(plain), decode(make())
    assert (found.mode, found.size) == (expected.mode, expected.size)
    assert found.tobytes() == expected.tobytes()


def test_a_tiff_of_thousands_of_tags_on_the_same_data_is_an_ordinary_image() -> None:
    assert np.asarray(decode(tiff_of_tags(5000))).tolist() == [[ord("x")] * 8] * 8


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    several = saved(kind, save_all=True, append_images=[NOISE.rotate(angle) for angle in (90, 180, 270)], **options)
    expected = Image.open(io.BytesIO(several))
    assert expected.n_frames == 4
    assert decode(several).tobytes() == expected.tobytes()


def mutations(count: int) -> list[bytes]:
    """Return images with a few bytes changed, cut out, doubled or added, the same ones in every run."""
    rng = np.random.default_rng(0)
    rgb, rle = NOISE.convert("RGB"), bmp_of_run_lengths(40, 30, b"\x05\x01\0\0\0\x03abc\0\0\2\1\1" * 60)
    floats = Image.fromarray(rng.random((30, 40), dtype=np.float32))
    files = [
        *(saved("JPEG"), saved("JPEG", progressive=True), saved("JPEG", rgb.convert("CMYK"))),
        *(
            saved("PNG"),
            saved("PNG", rgb.quantize(9), transparency=3),
            saved("PNG", rgb.convert("L").convert("I;16")),
        ),
        *(saved("WEBP"), saved("WEBP", lossless=True), saved("WEBP", save_all=True, append_images=[NOISE.rotate(9)])),
        *(saved("BMP"), saved("BMP", rgb.quantize(9)), rle, saved("GIF", rgb), saved("GIF", comment=b"hello")),
        *(
            saved("TIFF", rgb, compression=name)
            for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        *(saved("TIFF", big_tiff=True), saved("TIFF", rgb.convert("1"), compression="group4"), saved("TIFF", floats)),
        *(saved("TIFF", Image.new("LAB", (40, 30))), saved("TIFF", rgb.convert("YCbCr"))),
    ]
    return [mutated(files[number % len(files)], rng) for number in range(count)]


def mutated(file: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(file)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = int(rng.integers(0, min(len(changed) + 1, rng.choice([40, 200, 10**6]))))
        length = int(rng.integers(1, 30))
        extreme = bytes(rng.choice([0, 1, 127, 255], 4).astype(np.uint8))
        match rng.integers(0, 5):
            case 0:
                changed[place : place + 1] = rng.bytes(1)
            case 1:
                changed[place : place + 4] = extreme
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place // 2 : place // 2 + length]
            case 4:
                del changed[max(place, 8) :]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decoding", [Decoding.EXACT, Decoding.FAST])
def test_every_damaged_file_is_pixels_or_an_invalid_image(decoding: Decoding) -> None:
    specs = [
        PreprocessSpec(size_px=16, pad=pad, convert_rgb="after_crop", transparency=transparency)
        for pad in Pad
        for transparency in Transparency
    ]
    refused = 0
    for number, file in enumerate(mutations(500)):
        try:
            assert preprocess(file, specs[number % len(specs)], decoding).shape == (3, 16, 16)
        except InvalidImage as error:
            refused += 1
            assert str(error)  # noqa: PT017
    assert 100 < refused < 400


SHORT_OF_MEMORY = """
import os, resource, sys
from pathlib import Path
from cirrus_client.errors import InvalidImage
from cirrus_client.image.preprocess import PreprocessSpec, preprocess

spec = PreprocessSpec(size_px=64)
for path in sorted(Path(sys.argv[1]).iterdir()):
    image, endings = path.read_bytes(), set()
    for extra in range(0, 24, 4):
        if (child := os.fork()) == 0:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + extra * 2**20, resource.RLIM_INFINITY))
            try:
                preprocess(image, spec)
                os._exit(0)
            except MemoryError:
                os._exit(1)
            except InvalidImage:
                os._exit(2)
        endings.add(os.waitpid(child, 0)[1] >> 8)
    print(path.name, *sorted(endings))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
def test_a_good_image_without_memory_is_never_called_broken(tmp_path: Path) -> None:
    picture = NOISE.resize((700, 700)).convert("RGB")
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        (tmp_path / kind).write_bytes(saved(kind, picture))
    (tmp_path / "progressive").write_bytes(saved("JPEG", picture, progressive=True))
    (tmp_path / "lzw").write_bytes(saved("TIFF", picture, compression="tiff_lzw"))
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    endings = {name: set(codes) for name, *codes in map(str.split, done.stdout.splitlines())}
    assert len(endings) == 8
    assert all(codes == {"0", "1"} for codes in endings.values()), endings
