"""Queries that are encoded in the service's process."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.cores import usable_cores
from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.local import Pixels
from cirrus_client.encoders.remembering import KnownQuery, RememberingEncoder
from cirrus_client.errors import InvalidImage, TooManyRequests
from cirrus_client.service.encoding import LocalQueries
from cirrus_client.service.stopwatch import Stopwatch
from tests.tiny import write_tiny_reranking_bundle

_PATIENCE_S = 30


@pytest.fixture
def images(pictures: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(pictures.iterdir())[:2]]


def test_texts_are_encoded_while_images_are_decoded(tiny_bundle: Bundle, images: list[bytes]) -> None:
    ran: list[str] = []
    encoded = threading.Event()

    def observe(graph: str, seconds: float) -> None:
        ran.append(graph)
        encoded.set()

    class AfterTexts(RememberingEncoder):
        def decode(self, query: KnownQuery, image: bytes | None) -> KnownQuery:
            assert encoded.wait(_PATIENCE_S), "no text is encoded while an image is decoded"
            return super().decode(query, image)

    async def found(texts: list[str]) -> np.ndarray:
        queries = LocalQueries(AfterTexts(LocalEncoder(tiny_bundle, observe=observe), max_bytes=0), max_waiting=64)
        try:
            return await queries.encode(list(zip(images, texts, strict=True)), Stopwatch())
        finally:
            await queries.close()

    texts = ["in blue", "with stripes"]
    expected = LocalEncoder(tiny_bundle).encode_queries(images, texts)
    np.testing.assert_allclose(asyncio.run(found(texts)), expected, atol=1e-5)
    assert ran == ["text_encoder", "vision_encoder", "query_head"]


def test_a_query_that_is_refused_leaves_the_next_one_alone(tiny_bundle: Bundle, images: list[bytes]) -> None:
    async def found() -> np.ndarray:
        queries = LocalQueries(RememberingEncoder(LocalEncoder(tiny_bundle), max_bytes=2**20), max_waiting=64)
        try:
            with pytest.raises(InvalidImage) as error:
                await queries.encode([(images[0], "in blue"), (b"no image", "in blue")], Stopwatch())
            assert error.value.position == 1
            return await queries.encode([(images[0], "in blue")], Stopwatch())
        finally:
            await queries.close()

    expected = LocalEncoder(tiny_bundle).encode_queries(images[:1], ["in blue"])
    np.testing.assert_allclose(asyncio.run(found()), expected, atol=1e-5)


@pytest.mark.parametrize("side", ["queries", "targets"])
def test_after_a_bad_image_no_other_of_its_request_is_decoded(tiny_bundle: Bundle, images: list[bytes], side) -> None:
    """The others were decoded after the answer, beyond all limits of what a service holds."""
    decoded: list[int] = []

    class Counting(LocalEncoder):
        def prepare_image(self, image: bytes) -> Pixels:
            pixels = super().prepare_image(image)
            decoded.append(len(image))
            time.sleep(0.02)
            return pixels

        def prepare(self, image: bytes) -> Pixels:
            return self.prepare_image(image)

    async def refused() -> None:
        queries = LocalQueries(RememberingEncoder(Counting(tiny_bundle), max_bytes=0), max_waiting=1_000)
        given = [images[0][:2_000], *images * 200]  # the first is cut off: its header is right
        try:
            pairs = [(image, None) for image in given]
            asked = queries.encode(pairs, Stopwatch()) if side == "queries" else queries.encode_targets(given)
            with pytest.raises(InvalidImage) as error:
                await asked
            assert error.value.position == 0
            at_once = len(decoded)
            await asyncio.sleep(0.5)
            assert len(decoded) - at_once <= usable_cores()
            assert len(decoded) < len(images) * 200
        finally:
            await queries.close()

    asyncio.run(refused())


def test_more_candidates_than_may_wait_are_refused(images: list[bytes], tmp_path: Path) -> None:
    bundle = write_tiny_reranking_bundle(tmp_path / "reranking")

    async def scored(candidates: list[bytes]) -> np.ndarray:
        queries = LocalQueries(RememberingEncoder(LocalEncoder(bundle), max_bytes=0), max_waiting=1)
        try:
            return await queries.scores((images[0], "in blue"), candidates)
        finally:
            await queries.close()

    expected = LocalEncoder(bundle).scores(images[0], "in blue", images * 8)
    np.testing.assert_allclose(asyncio.run(scored(images * 8)), expected, rtol=1e-4)
    with pytest.raises(TooManyRequests, match="the limit is 16"):
        asyncio.run(scored(images * 8 + images[:1]))
