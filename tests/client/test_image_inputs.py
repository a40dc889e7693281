"""Images are given as bytes, paths or PIL images; an image that is wrong is not a machine that fails."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import InvalidImage, InvalidInput, UnreadableImage
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
