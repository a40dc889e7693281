"""Clients of a real Triton server that threads and tasks share, close, and must not take into a fork."""

from __future__ import annotations

import asyncio
import socket
import sys
import time

import numpy as np
import pytest

from cirrus_client import AsyncTritonEncoder, TritonEncoder, open_async_retriever, open_retriever
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import InvalidImage, ServerError, ServerTimeout, ServerUnavailable, SpaceMismatch
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.names import Transport
from cirrus_client.triton.requests import RetryPolicy
from cirrus_client.triton.server import free_ports
from tests.client.test_threads import THREADS, check_shared, image_of, in_forked_process
from tests.conftest import jpeg

pytestmark = pytest.mark.triton
IMPATIENT = RetryPolicy(attempts=2, first_pause_s=0.05)


def url(server, transport: Transport) -> str:
    return server.grpc_url if transport is Transport.GRPC else server.http_url


@pytest.fixture(scope="module")
def index_root(encoder, photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    embed_gallery(photos, root / "gallery", encoder)
    build_index(read_gallery(root / "gallery"), root / "index")
    return root / "index"


@pytest.mark.parametrize("transport", list(Transport))
def test_threads_share_a_client_and_close_it_once(server, photos, transport: Transport) -> None:
    with TritonEncoder(url(server, transport), transport=transport) as triton:
        images = [image_of(photos, thread) for thread in range(THREADS)]
        check_shared(lambda thread: triton.encode_queries([images[thread]], [f"number {thread}"])[0])
        triton.encode_targets([images[0]])
        assert triton._connections
    assert not triton._connections
    assert triton.encode_targets([images[0]]).shape == (1, 64)
    triton.close()


@pytest.mark.parametrize("transport", list(Transport))
def test_an_asyncio_retriever_ranks_as_the_sync_one_does(
    server, encoder, index_root, photos, transport: Transport
) -> None:
    images = sorted(photos.iterdir())[:12]
    expected = open_retriever(encoder, index_root).search_many(images, ["in blue"] * 12, k=5)

    async def run():
        client = AsyncTritonEncoder(url(server, transport), transport=transport)
        async with open_async_retriever(client, index_root) as retriever:
            with pytest.raises(InvalidImage) as refused:
                await retriever.search_many([images[0], b""], [None, None])
            assert (refused.value.item, refused.value.position) == ("query", 1)
            return await asyncio.gather(*(retriever.search(image=image, text="in blue", k=5) for image in images))

    answers = asyncio.run(run())
    assert [[match.id for match in matches] for matches in answers] == [
        [match.id for match in matches] for matches in expected
    ]


def test_an_asyncio_retriever_takes_an_encoder_of_this_process(encoder, index_root, photos, clip_bundle) -> None:
    image = sorted(photos.iterdir())[0]

    async def run():
        async with open_async_retriever(encoder, index_root) as retriever:
            matches = await retriever.search(image=image, text="in blue", k=3)
        with pytest.raises(SpaceMismatch) as refused:
            await open_async_retriever(LocalEncoder(clip_bundle), index_root).search(image=image)
        return matches, refused.value

    matches, refused = asyncio.run(run())
    assert [match.rank for match in matches] == [1, 2, 3]
    assert "target_head" in refused.components


@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's")
def test_a_forked_process_is_told_to_spawn(server, photos) -> None:
    triton = TritonEncoder(server.grpc_url)
    image = image_of(photos, 0)
    expected = triton.encode_targets([image])
    answer = in_forked_process(lambda: triton.encode_targets([image]))
    assert isinstance(answer, ServerError)
    assert "spawn" in str(answer)
    np.testing.assert_allclose(triton.encode_targets([image]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("http://127.0.0.1:8000", "give host:port alone, like 127.0.0.1:8000"),
        ("grpc://host:8001/v2", "give host:port alone, like host:8001"),
        ("localhost", "expected host:port, like localhost:8001"),
        (":8001", "expected host:port"),
        ("localhost:http", "expected host:port"),
        ("localhost:99999", "expected host:port"),
        ("localhost:\u00b2", "expected host:port"),
    ],
)
@pytest.mark.parametrize("client", [TritonEncoder, AsyncTritonEncoder])
def test_an_address_that_is_none_names_the_cure(client, address: str, cure: str) -> None:
    with pytest.raises(ServerError, match=cure) as refused:
        client(address)
    assert refused.value.url == address


@pytest.mark.parametrize("transport", list(Transport))
def test_a_port_of_something_else_names_the_usual_ports(server, transport: Transport) -> None:
    other = server.http_url if transport is Transport.GRPC else server.grpc_url
    with pytest.raises(ServerError, match="gRPC port is 8001 unless changed, its HTTP port 8000"):
        TritonEncoder(other, transport=transport, retry=IMPATIENT, timeout_s=5).encode_targets([jpeg()])


def test_a_port_where_nobody_listens_names_the_usual_ports() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ServerUnavailable, match="gRPC port is 8001 unless changed"):
        TritonEncoder(f"127.0.0.1:{port}", retry=IMPATIENT).encode_targets([jpeg()])


@pytest.mark.parametrize("transport", list(Transport))
def test_a_server_that_accepts_and_says_nothing_ends_in_a_timeout(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ServerTimeout):
            TritonEncoder(address, transport=transport, retry=IMPATIENT, timeout_s=1).encode_targets([jpeg()])
        assert time.monotonic() - started < 15
