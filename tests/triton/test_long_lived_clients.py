"""Clients that live longer than a server, a thread or a connection: no answer is of another bundle."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from cirrus_client import AsyncTritonEncoder, TritonEncoder
from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.errors import ServerError
from cirrus_client.names import Transport
from cirrus_client.triton import encoder
from cirrus_client.triton.requests import RetryPolicy
from cirrus_client.triton.wire import SPACE_PARAMETER
from tests.conftest import jpeg
from tests.triton.test_hostile_server import SPACE, Hostile, config

ONCE = RetryPolicy(attempts=1)
OTHER = SpaceSpec.of({"backbone": "another"}, dim=SPACE.dim, vectors=1, similarity=Similarity.COSINE)


class Stub(Hostile):
    """Answers every image with the same embedding once `may_answer` is set, from a bundle that may be replaced."""

    def __init__(self) -> None:
        output = {"name": "embedding", "datatype": "FP32", "shape": [1, SPACE.dim]}
        super().__init__(config(), output, np.full(SPACE.dim, 0.125, np.float32).tobytes())
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()

    def serve(self, space: SpaceSpec) -> None:
        """Serve another bundle from now on."""
        parameters = config()["parameters"] | {SPACE_PARAMETER: {"string_value": space.model_dump_json()}}
        self._described = config(parameters=parameters)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.asked.set()
        self.may_answer.wait(10)
        return super().ModelInfer(request, context)


@contextmanager
def stub_server() -> Iterator[tuple[Stub, str]]:
    server, stub = grpc.server(futures.ThreadPoolExecutor(4)), Stub()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stub, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield stub, address
    finally:
        stub.may_answer.set()
        server.stop(None).wait()


def test_a_server_of_another_bundle_at_the_same_address_is_told(monkeypatch) -> None:
    monkeypatch.setattr(encoder, "_TRUSTED_S", -1.0)

    async def run(stub: Stub, address: str) -> None:
        async with AsyncTritonEncoder(address, retry=ONCE) as client:
            await client.encode_targets([jpeg()])
            stub.serve(OTHER)
            with pytest.raises(ServerError, match=r"another bundle than when this encoder first asked.* backbone"):
                await client.encode_targets([jpeg()])
            stub.serve(SPACE)

    with stub_server() as (stub, address), TritonEncoder(address, retry=ONCE) as client:
        client.encode_targets([jpeg()])
        stub.serve(OTHER)
        for _ in range(2):
            with pytest.raises(ServerError, match=r"another bundle than when this encoder first asked.* backbone"):
                client.encode_targets([jpeg()])
        assert client.space == SPACE
        stub.serve(SPACE)
        client.encode_targets([jpeg()])
        asyncio.run(run(stub, address))


def test_a_server_of_another_space_than_expected_answers_once_it_has_the_right_one() -> None:
    with stub_server() as (stub, address), TritonEncoder(address, retry=ONCE) as client:
        client.expect(SPACE)
        stub.serve(OTHER)
        with pytest.raises(ServerError, match=r"another bundle than this encoder is for.* backbone"):
            client.encode_targets([jpeg()])
        stub.serve(SPACE)
        assert client.encode_targets([jpeg()]).shape == (1, SPACE.dim)


def test_a_call_whose_client_is_closed_meanwhile_says_so() -> None:
    async def run(stub: Stub, address: str) -> None:
        client = AsyncTritonEncoder(address, retry=ONCE)
        call = asyncio.create_task(client.encode_targets([jpeg()]))
        await asyncio.to_thread(stub.asked.wait)
        await client.close()
        with pytest.raises(ServerError, match="was closed during this call"):
            await call
        stub.asked.clear()
        call = asyncio.create_task(client.encode_targets([jpeg()]))
        await asyncio.to_thread(stub.asked.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await client.close()

    with stub_server() as (stub, address), futures.ThreadPoolExecutor(1) as threads:
        stub.may_answer.clear()
        client = TritonEncoder(address, retry=ONCE)
        call = threads.submit(client.encode_targets, [jpeg()])
        stub.asked.wait()
        client.close()
        with pytest.raises(ServerError, match="was closed during this call"):
            call.result()
        stub.asked.clear()
        asyncio.run(run(stub, address))


def test_a_call_that_ends_while_its_connection_is_being_closed_says_so_as_well(monkeypatch) -> None:
    with stub_server() as (stub, address), futures.ThreadPoolExecutor(1) as threads:
        client = TritonEncoder(address, retry=ONCE)
        threads.submit(client.encode_targets, [jpeg()]).result()
        stub.asked.clear()
        stub.may_answer.clear()
        call = threads.submit(client.encode_targets, [jpeg()])
        stub.asked.wait()
        (connection,) = client._connections
        close = connection.close

        def close_slowly() -> None:
            close()
            futures.wait([call])

        monkeypatch.setattr(connection, "close", close_slowly)
        client.close()
        with pytest.raises(ServerError, match="was closed during this call"):
            call.result()


def test_threads_get_connections_while_another_closes_them() -> None:
    client, interval, end = TritonEncoder("127.0.0.1:1"), sys.getswitchinterval(), time.monotonic() + 0.7

    def connect() -> None:
        while time.monotonic() < end:
            client._connection()

    sys.setswitchinterval(1e-6)
    try:
        with futures.ThreadPoolExecutor(4) as threads:
            users = [threads.submit(connect) for _ in range(4)]
            while time.monotonic() < end:
                client.close()
            for user in users:
                user.result()
    finally:
        sys.setswitchinterval(interval)


def test_an_event_loop_whose_end_another_thread_finds_as_well_is_forgotten_once() -> None:
    client = AsyncTritonEncoder("127.0.0.1:1")

    class Ended(asyncio.SelectorEventLoop):
        def is_closed(self) -> bool:
            client._of_loop.pop(self, None)
            return super().is_closed()

    async def connect() -> None:
        client._connection()

    for _ in range(2):
        ended = Ended()
        ended.run_until_complete(connect())
        ended.close()
        client._of_loop.setdefault(ended, client._of_loop.get(ended))  # type: ignore[arg-type]
    asyncio.run(connect())
    assert len(client._of_loop) == 1


@pytest.mark.parametrize("kind", [TritonEncoder, AsyncTritonEncoder])
def test_a_connection_pool_over_http_that_is_closed_meanwhile_is_told_as_well(kind) -> None:
    """gevent's pool, and aiohttp's session, raise a RuntimeError once they are closed."""
    client = kind("127.0.0.1:1", transport=Transport.HTTP, retry=ONCE)

    def closed(connection: Any) -> None:
        client.close()
        raise RuntimeError("connection pool closed")

    async def closed_async(connection: Any) -> None:
        await client.close()
        raise RuntimeError("Session is closed")

    async def run() -> None:
        await client._call(closed_async)

    with pytest.raises(ServerError, match="was closed during this call"):
        asyncio.run(run()) if kind is AsyncTritonEncoder else client._call(closed)


def test_the_connection_of_a_thread_ends_with_it() -> None:
    with stub_server() as (_, address), TritonEncoder(address, retry=ONCE) as client:
        for _ in range(5):
            thread = threading.Thread(target=client.encode_targets, args=([jpeg()],))
            thread.start()
            thread.join()
        assert len(client._connections) <= 1
