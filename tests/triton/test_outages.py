"""What clients do when a server is away, back again, or has more requests than it can take."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from cirrus_client import AsyncTritonEncoder, TritonEncoder
from cirrus_client.errors import CirrusError, ServerOverloaded, ServerUnavailable
from cirrus_client.names import Flavour, Transport
from cirrus_client.triton.encoder import _TRUSTED_S
from cirrus_client.triton.requests import RetryPolicy
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.repository import Limits, models, write_repository
from tests.conftest import jpeg
from tests.triton.test_hostile_server import SPACE, Hostile, config

ONCE = RetryPolicy(attempts=1)


def well_meant(port: int) -> grpc.Server:
    """Start a server that answers every image with the same embedding."""
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    embedding = np.full(SPACE.dim, 0.125, np.float32)
    output = {"name": "embedding", "datatype": "FP32", "shape": [1, SPACE.dim]}
    answering = Hostile(config(), output, embedding.tobytes())
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answering, server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    return server


@pytest.mark.slow
def test_after_an_outage_old_and_new_clients_are_answered_within_a_second() -> None:
    (port,) = free_ports(1)
    first = well_meant(port)
    old = TritonEncoder(f"127.0.0.1:{port}", retry=ONCE)
    assert old.encode_targets([jpeg()]).shape == (1, SPACE.dim)
    first.stop(None).wait()
    end = time.monotonic() + 6  # long enough for gRPC's own pauses to grow to several seconds
    while time.monotonic() < end:
        with pytest.raises(ServerUnavailable):
            old.encode_targets([jpeg()])
        time.sleep(0.05)
    second = well_meant(port)
    try:
        for encoder in (old, TritonEncoder(f"127.0.0.1:{port}", retry=ONCE)):
            assert seconds_until_answered(encoder) < 1
    finally:
        second.stop(None)


def seconds_until_answered(encoder: TritonEncoder) -> float:
    start = time.monotonic()
    while True:
        try:
            encoder.encode_targets([jpeg()])
        except ServerUnavailable:
            time.sleep(0.02)
        else:
            return time.monotonic() - start


@pytest.fixture(scope="module")
def narrow_server(tiny_served, tmp_path_factory):
    """A real server whose queues hold two requests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "LIMITS", Limits(queue_size=2))
        repository = tmp_path_factory.mktemp("narrow") / "models"
        write_repository(tiny_served.root, tiny_served.spec, Flavour.PYTHON, repository)
    http, grpc_port, metrics = free_ports(3)
    with TritonServer(repository, http_port=http, grpc_port=grpc_port, metrics_port=metrics) as running:
        yield running


@pytest.mark.triton
def test_a_server_is_started_without_a_fork_that_grpc_could_stop(tiny_served) -> None:
    """Beside busy gRPC threads, a fork was seen to wait for ever for a lock of theirs."""
    forks: list[int] = []
    os.register_at_fork(before=lambda: forks.append(1))
    http, grpc_port, metrics = free_ports(3)
    repository = tiny_served.root / "triton" / "python"
    with TritonServer(repository, http_port=http, grpc_port=grpc_port, metrics_port=metrics):
        assert not forks


@pytest.mark.triton
def test_a_server_that_is_back_with_smaller_batches_is_sent_smaller_ones(tiny_served, tmp_path: Path) -> None:
    """The batch of the first server was kept for ever, and refused by the second one for ever."""
    http, grpc_port, metrics = free_ports(3)
    images = [jpeg(colour) for colour in ("red", "navy", "olive", "white", "black")]

    def serving(max_batch: int) -> TritonServer:
        repository = tmp_path / f"batches of {max_batch}"
        spec = tiny_served.spec.model_copy(update={"max_batch": max_batch})
        write_repository(tiny_served.root, spec, Flavour.PYTHON, repository)
        return TritonServer(repository, http_port=http, grpc_port=grpc_port, metrics_port=metrics)

    with serving(4) as first:
        addresses = {Transport.GRPC: first.grpc_url, Transport.HTTP: first.http_url}
        waiting = [TritonEncoder(address, transport=transport) for transport, address in addresses.items()]
        asyncio_ones = [AsyncTritonEncoder(address, transport=transport) for transport, address in addresses.items()]

        async def encode(encoder: AsyncTritonEncoder) -> np.ndarray:
            async with encoder:
                return await encoder.encode_targets(images)

        def encoded() -> list[np.ndarray]:
            return [one.encode_targets(images) for one in waiting] + [asyncio.run(encode(one)) for one in asyncio_ones]

        before = encoded()
    with serving(2):
        after = encoded()
    with serving(4):
        encoded()
        time.sleep(_TRUSTED_S)
        encoded()
        assert {one._model().max_batch for one in waiting} == {4}
    for one in before + after:
        np.testing.assert_allclose(one, before[0], atol=1e-5)
    for one in waiting:
        one.close()


@pytest.mark.triton
@pytest.mark.parametrize("transport", list(Transport))
def test_a_full_queue_is_an_overload_that_is_not_tried_again(narrow_server, transport: Transport, monkeypatch) -> None:
    address = narrow_server.grpc_url if transport is Transport.GRPC else narrow_server.http_url
    images = [jpeg("green", (1_500 + place, 2_000)) for place in range(48)]
    with TritonEncoder(address, transport=transport) as encoder, ThreadPoolExecutor(len(images)) as pool:
        monkeypatch.setattr(encoder, "_retry", RetryPolicy(attempts=3, first_pause_s=60))  # a retry would be noticed
        encoder.encode_targets([jpeg()])

        def encode(image: bytes) -> np.ndarray | CirrusError:
            try:
                return encoder.encode_targets([image])
            except CirrusError as error:
                return error

        start = time.monotonic()
        outcomes = list(pool.map(encode, images))
    assert time.monotonic() - start < 40
    refused = [outcome for outcome in outcomes if isinstance(outcome, CirrusError)]
    assert refused
    assert len(refused) < len(images)
    assert all(type(outcome) is ServerOverloaded for outcome in refused), refused
    assert refused[0].url == address
    assert "overloaded" in str(refused[0])


@pytest.mark.parametrize("transport", list(Transport))
def test_an_asyncio_client_serves_one_event_loop_after_another_and_beside_it(server, transport: Transport) -> None:
    address = server.grpc_url if transport is Transport.GRPC else server.http_url
    shared = AsyncTritonEncoder(address, transport=transport)

    async def encode() -> np.ndarray:
        embeddings = await shared.encode_targets([jpeg("navy")])
        await shared.close()
        return embeddings

    first, second = asyncio.run(encode()), asyncio.run(encode())
    with ThreadPoolExecutor(3) as pool:
        beside = list(pool.map(lambda _: asyncio.run(encode()), range(3)))
    for embeddings in (second, *beside):
        np.testing.assert_array_equal(embeddings, first)
    assert not shared._of_loop


def test_asyncio_over_http_answers_more_requests_than_it_has_connections(server) -> None:
    async def encode_all() -> list[np.ndarray]:
        async with AsyncTritonEncoder(server.http_url, transport=Transport.HTTP, timeout_s=10) as encoder:
            image = jpeg("olive")
            return await asyncio.gather(*(encoder.encode_targets([image]) for _ in range(600)))

    answers = asyncio.run(encode_all())
    assert len(answers) == 600
    assert len({answer.tobytes() for answer in answers}) == 1


@pytest.mark.parametrize("kind", [TritonEncoder, AsyncTritonEncoder])
def test_a_client_pickles_by_reopening(kind, server) -> None:
    original = kind(server.http_url, transport=Transport.HTTP, timeout_s=17, retry=ONCE)
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is kind
    assert (copy.url, copy._transport, copy._timeout_s, copy._retry) == (
        server.http_url, Transport.HTTP, 17, ONCE,
    )  # fmt: skip


def test_a_client_in_use_pickles_and_its_copy_answers(server) -> None:
    with TritonEncoder(server.grpc_url) as original:
        expected = original.encode_targets([jpeg("teal")])
        with pickle.loads(pickle.dumps(original)) as copy:
            np.testing.assert_array_equal(copy.encode_targets([jpeg("teal")]), expected)
