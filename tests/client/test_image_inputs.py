"""Images are given as bytes, paths or PIL images; an image that is wrong is not a machine that fails."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import InvalidImage, InvalidInput, UnreadableImage
from cirrus_client.image import inputs
from cirrus_client.image.inputs import image_bytes
from cirrus_client.image.limits import MAX_IMAGE_BYTES
from cirrus_client.image.preprocess import PreprocessSpec, preprocess
from tests.conftest import jpeg


def test_all_kinds_of_bytes_are_the_same_image(encoder: LocalEncoder) -> None:
    content = jpeg("teal")
    embeddings = encoder.encode_targets([content, bytearray(content), memoryview(content)])
    np.testing.assert_array_equal(embeddings[1:], embeddings[:1].repeat(2, axis=0))


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("missing.jpg", errno.ENOENT),
        ("a-folder", errno.EISDIR),
        ("missing.jpg/deeper", errno.ENOENT),
        ("a\0b.jpg", None),
    ],
)
def test_a_path_that_cannot_be_read_is_no_verdict_on_an_image(
    path: str, number: int | None, tmp_path: Path, encoder: LocalEncoder
) -> None:
    (tmp_path / "a-folder").mkdir()
    named = str(tmp_path / path)
    for given in (named, Path(named)):
        with pytest.raises(UnreadableImage, match="image 1: can't read image file") as caught:
            encoder.encode_targets([jpeg(), given])
        assert not isinstance(caught.value, InvalidInput)
        assert (caught.value.path, caught.value.errno, caught.value.position) == (named, number, 1)
        assert pickle.loads(pickle.dumps(caught.value)).errno == number
    with pytest.raises(UnreadableImage, match="query 0: can't read image file"):
        encoder.encode_queries([named], ["in blue"])


def test_a_file_over_the_limit_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    with path.open("wb") as file:
        file.truncate(2**40)
    content = image_bytes(path)
    assert len(content) == MAX_IMAGE_BYTES + 1
    with pytest.raises(InvalidImage, match="more bytes than the limit of 67,108,864"):
        preprocess(content, PreprocessSpec(size_px=32))


def test_what_is_no_image_at_all_is_named_by_its_type(encoder: LocalEncoder) -> None:
    with pytest.raises(InvalidImage, match=r"image 0: an image is the bytes of a file, .* not of type ndarray"):
        encoder.encode_targets([np.zeros((8, 8, 3), np.uint8)])


def noise() -> bytes:
    """Return a JPEG that is larger than what files are read ahead."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def lazily_opened(path: Path, change: Callable[[Path], None]) -> Image.Image:
    """Return a PIL image that was opened before its file changed, and is not read yet."""
    path.write_bytes(noise())
    opened = Image.open(path)
    change(path)
    return opened


def closed(path: Path) -> Image.Image:
    opened = lazily_opened(path, lambda path: None)
    opened.close()
    return opened


def loaded_and_closed(path: Path) -> Image.Image:
    opened = lazily_opened(path, lambda path: None)
    opened.load()
    opened.close()
    return opened


def truncated(path: Path) -> Image.Image:
    return lazily_opened(path, lambda path: os.truncate(path, 50_000))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (closed, "the PIL image can't be read"),
        (loaded_and_closed, "the PIL image can't be read"),
        (truncated, "the PIL image can't be read: .*truncated"),
        (lambda path: Image.new("RGB", (0, 5)), "0 x 5 = 0 pixels"),
        (lambda path: Image.new("1", (100_001, 1000)), "100,001,000 pixels, the limit is 100,000,000"),
    ],
)
def test_a_pil_image_that_cannot_be_used_says_why(
    make: Callable[[Path], Image.Image], reason: str, tmp_path: Path, encoder: LocalEncoder
) -> None:
    with pytest.raises(InvalidImage, match=f"query 0: .*{reason}"):
        encoder.encode_queries([make(tmp_path / "photo.jpg")], ["in blue"])


def test_a_pil_image_that_becomes_too_large_a_file_is_named_as_one(monkeypatch) -> None:
    monkeypatch.setattr(inputs, "MAX_IMAGE_BYTES", 100_000)
    photo = noise()
    assert len(photo) > 100_000
    with pytest.raises(InvalidImage, match=r"PIL image of 500 x 500 pixels becomes a file of [\d,]+ bytes .* its own"):
        image_bytes(Image.open(io.BytesIO(photo)))


def test_a_pil_image_whose_folder_fails_is_no_verdict_on_it() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 50_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    opened = Image.open(Failing(noise()))
    with pytest.raises(UnreadableImage, match="Input/output error") as caught:
        image_bytes(opened)
    assert caught.value.errno == errno.EIO


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_of_a_pil_image_leaves_it_as_it_is() -> None:
    image = Image.new("RGB", (4, 6), "teal")
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"
    assert Image.open(io.BytesIO(image_bytes(image))).size == (4, 6)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "RGB"])
def test_a_pil_image_that_xmp_turns_is_turned_once(mode: str) -> None:
    """Pillow turns a TIFF when it loads it, and writes what was in its tags when it saves it."""
    levels = np.random.default_rng(0).integers(0, 255, (23, 37, 3), dtype=np.uint8)
    file = io.BytesIO()
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(levels).convert(mode).save(file, "TIFF", tiffinfo={700: xmp})
    spec = PreprocessSpec(size_px=16)
    of_image = preprocess(image_bytes(Image.open(io.BytesIO(file.getvalue()))), spec)
    np.testing.assert_array_equal(of_image, preprocess(file.getvalue(), spec))
