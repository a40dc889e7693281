"""HEIC and AVIF files are seen like the picture that they hold, upright, within the limits."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, features

from cirrus_client.errors import InvalidImage
from cirrus_client.gallery import embed_gallery
from cirrus_client.image.decode import begins_as_image, check_header, decode
from cirrus_client.image.limits import MAX_IMAGE_PIXELS

FORMATS = ("HEIF", "AVIF")


def encoded(format: str, picture: Image.Image, **options: object) -> bytes:
    if format == "HEIF":
        plugin = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
        plugin.register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    file = io.BytesIO()
    picture.save(file, format, quality=95, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    blocks = np.random.default_rng(1).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_a_picture_is_seen_upright(format: str, orientation: int | None, picture: Image.Image) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = encoded(format, picture, exif=exif.tobytes())
    assert begins_as_image(file[:16])
    assert check_header(file).format == format
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    expected = picture if orientation not in turned else picture.transpose(turned[orientation])
    seen = decode(file)
    assert (seen.mode, seen.size) == ("RGB", expected.size)
    assert np.abs(np.asarray(seen, np.int16) - np.asarray(expected, np.int16)).mean() < 4


@pytest.mark.parametrize("format", FORMATS)
def test_the_size_that_a_file_claims_is_checked_before_decoding(format: str, picture: Image.Image) -> None:
    file = bytearray(encoded(format, picture))
    place = file.index(b"ispe") + 8
    struct.pack_into(">II", file, place, 60_000, 60_000)
    with pytest.raises(InvalidImage, match=f"the limit is {MAX_IMAGE_PIXELS:,}"):
        check_header(bytes(file))


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_file_is_pixels_or_an_invalid_image(format: str, picture: Image.Image) -> None:
    file = encoded(format, picture)
    generator = np.random.default_rng(2)
    for _ in range(60):
        damaged = bytearray(file)
        for place in generator.integers(0, len(file), 3):
            damaged[place] = generator.integers(0, 256)
        for content in (bytes(damaged), bytes(damaged[: generator.integers(0, len(file))])):
            with suppress(InvalidImage):
                assert decode(content).size


@pytest.mark.slow
def test_a_gallery_without_the_plugin_leaves_heic_for_the_run_that_has_it(picture, tmp_path, encoder, bundle) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.heic").write_bytes(encoded("HEIF", picture))
    picture.save(tmp_path / "photos" / "b.png")
    script = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from cirrus_client.bundle import Bundle\n"
        "from cirrus_client.encoders import LocalEncoder\n"
        "from cirrus_client.gallery import embed_gallery\n"
        f"encoder = LocalEncoder(Bundle.open({str(bundle.root)!r}))\n"
        f"summary = embed_gallery({str(tmp_path / 'photos')!r}, {str(tmp_path / 'out')!r}, encoder)\n"
        "print(summary.embedded, *((item.file.path, item.reason) for item in summary.undone), summary.rejected)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 ('a.heic', ")
    assert "pip install 'cirrus-cir[heif]'" in done.stdout
    summary = embed_gallery(tmp_path / "photos", tmp_path / "out", encoder)
    assert (summary.embedded, summary.new, summary.is_whole) == (2, 1, True)
