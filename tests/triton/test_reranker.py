"""The reranker on a real Triton server: the scores of the one in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.canary import read_canary
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import InvalidImage, InvalidText, UnsupportedQuery
from cirrus_client.names import Transport
from cirrus_client.replay import TritonRunner, replay
from cirrus_client.triton.encoder import AsyncTritonEncoder, TritonEncoder
from cirrus_client.triton.served_names import ServedNames
from cirrus_client.triton.server import TritonServer, free_ports
from tests.conftest import BAD_IMAGES
from tests.tiny import with_repository, write_tiny_reranking_bundle

pytestmark = pytest.mark.triton
PROTOCOLS = list(Transport)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_repository(write_tiny_reranking_bundle(tmp_path_factory.mktemp("served") / "reranking"))


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[TritonServer]:
    http, grpc, metrics = free_ports(3)
    with TritonServer(
        bundle.root / "triton" / "python", http_port=http, grpc_port=grpc, metrics_port=metrics
    ) as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def triton(request, server) -> TritonEncoder:
    url = server.grpc_url if request.param is Transport.GRPC else server.http_url
    return TritonEncoder(url, transport=request.param)


@pytest.fixture(scope="module")
def photos(pictures: Path) -> list[Path]:
    return sorted(pictures.iterdir())


def test_the_server_gives_the_local_scores_of_more_than_a_batch(triton, bundle, photos) -> None:
    candidates = [*photos, *photos[:20]]
    for text in ("in blue", None):
        expected = LocalEncoder(bundle).scores(photos[3], text, candidates)
        np.testing.assert_allclose(triton.scores(photos[3], text, candidates), expected, rtol=1e-4)
    assert triton.scores(photos[3], "in blue", []).shape == (0,)


def test_the_asyncio_twin_gives_the_same(server, bundle, photos) -> None:
    async def run() -> np.ndarray:
        async with AsyncTritonEncoder(server.grpc_url) as twin:
            with pytest.raises(InvalidImage, match="candidate 1: "):
                await twin.scores(photos[3], "in blue", [photos[0], b""])
            return await twin.scores(photos[3], "in blue", photos)

    expected = LocalEncoder(bundle).scores(photos[3], "in blue", photos)
    np.testing.assert_allclose(asyncio.run(run()), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_candidate_and_a_bad_query_are_named(triton, photos, kind) -> None:
    content, reason = BAD_IMAGES[kind]
    with pytest.raises(InvalidImage, match=f"candidate 2: .*{reason}"):
        triton.scores(photos[0], "in blue", [photos[1], photos[2], content])
    with pytest.raises(InvalidImage, match=f"query 0: .*{reason}"):
        triton.scores(content, "in blue", photos[:2])
    with pytest.raises(InvalidText, match="query 0: the text has"):
        triton.scores(photos[0], "blue " * 10_000, photos[:2])
    assert triton.scores(photos[0], "in blue", photos[:2]).shape == (2,)


def test_a_query_without_an_image_is_refused(triton, photos) -> None:
    with pytest.raises(UnsupportedQuery, match="query 0: it is to be re-ranked and has no image"):
        triton.scores(None, "in blue", photos[:2])


def test_the_server_passes_the_canary_of_both_halves(server, bundle) -> None:
    for url, transport in ((server.http_url, Transport.HTTP), (server.grpc_url, Transport.GRPC)):
        names = ServedNames(bundle.spec, shared=False)
        result = replay(read_canary(bundle), bundle.spec, TritonRunner(url, names, transport=transport))
        assert {"encode_condition", "score_candidate", "matching_head"} <= {check.stage for check in result.stages}
        result.check("the server")
