"""A real server under many callers, damaged images and kills: no wrong answer, no untyped error, no memory kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from cirrus_client import LocalEncoder, TritonEncoder
from cirrus_client.errors import InvalidImage
from cirrus_client.names import Transport
from cirrus_client.triton.requests import RetryPolicy
from cirrus_client.triton.server import TritonServer, free_ports
from tests.torture.mixed_load import ask_all, asked_all_the_time, is_gone, queries, wait_until
from tests.torture.report import Served
from tests.triton.test_image_bombs import resident_mib

pytestmark = [pytest.mark.triton, pytest.mark.slow]
_THREADS = 8


@pytest.fixture
def server(tiny_served) -> Iterator[TritonServer]:
    http, grpc, metrics = free_ports(3)
    repository = tiny_served.root / "triton" / "python"
    with TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics, cache_bytes=0) as running:
        yield running


def test_damaged_images_under_load_are_refused_one_by_one_and_leave_no_memory_behind(
    tiny_served, server, thorough: bool, served: list[Served]
) -> None:
    """Over HTTP: Triton 2.51 keeps about 1 KB of every request over gRPC (server#6781)."""
    damaged, warming = (1000, 25) if thorough else (60, 3)
    asked = queries(LocalEncoder(tiny_served, engine="onnxruntime"), good=damaged, damaged=damaged, seed=1)
    broken = [query for query in asked if query.expected is InvalidImage]
    with TritonEncoder(server.http_url, transport=Transport.HTTP) as encoder:
        ask_all(encoder, broken * warming + asked * 2, threads=_THREADS)
        before = resident_mib(server)
        outcomes = ask_all(encoder, asked, threads=_THREADS)
        after = resident_mib(server)
    assert not outcomes.wrong
    assert outcomes.counted.total() == len(asked)
    assert set(outcomes.counted) == {"answered", "refused"}
    assert after <= (1.02 * before if thorough else before + 100)  # the allocator needs some 30,000 images to settle
    served.append(Served.of("damaged images", outcomes, memory_mib=(before, after)))


def test_a_server_that_is_killed_under_load_costs_no_answer_but_those_it_had_in_hand(
    tiny_served, server, thorough: bool, served: list[Served]
) -> None:
    asked = queries(LocalEncoder(tiny_served, engine="onnxruntime"), good=100, damaged=40, seed=2)
    killed = []
    with (
        TritonEncoder(server.grpc_url, retry=RetryPolicy(attempts=1)) as encoder,
        asked_all_the_time(encoder, asked, threads=_THREADS) as outcomes,
    ):
        for _ in range(5 if thorough else 1):
            answered = outcomes.counted["answered"]
            assert wait_until(lambda answered=answered: outcomes.counted["answered"] > answered + 200, within_s=60)
            killed.append(server.pid)
            os.kill(server.pid, signal.SIGKILL)
            unavailable = outcomes.counted["ServerUnavailable"]
            assert wait_until(
                lambda unavailable=unavailable: outcomes.counted["ServerUnavailable"] > unavailable, within_s=30
            )
            server.stop()
            server.start()
        answered = outcomes.counted["answered"]
        assert wait_until(lambda: outcomes.counted["answered"] > answered + 200, within_s=60)
    assert not outcomes.wrong
    for group in killed:
        assert wait_until(partial(is_gone, group), within_s=30)
    served.append(Served.of(f"{len(killed)} kills of the server", outcomes))
