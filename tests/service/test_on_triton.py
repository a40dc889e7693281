"""The service on a real Triton server: the same answers, the canary, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx2
import pytest
from tritonclient.grpc import service_pb2_grpc

from cirrus_client.bundle import Bundle, Similarity, SpaceSpec
from cirrus_client.canary import read_canary
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import ServerUnavailable
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.names import EnsembleName, Flavour, Transport
from cirrus_client.replay import TritonRunner, replay
from cirrus_client.retriever import open_retriever
from cirrus_client.service import encoders
from cirrus_client.service.collection import Source
from cirrus_client.service.encoders import Encoders
from cirrus_client.service.encoding import TritonQueries
from cirrus_client.service.limits import Limits
from cirrus_client.service.metrics import Metrics
from cirrus_client.service.options import RemoteTriton
from cirrus_client.service.stopwatch import Stopwatch
from cirrus_client.triton.encoder import AsyncTritonEncoder
from cirrus_client.triton.listening import are_free
from cirrus_client.triton.requests import RetryPolicy, ServedModel
from cirrus_client.triton.served_names import ServedNames
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.repository import write_shared_repository
from tests.conftest import jpeg
from tests.service.live import Live, live
from tests.service.test_canary import damaged
from tests.service.test_search import ids, problem, search
from tests.test_cli import cirrus
from tests.tiny import with_repository, write_tiny_zero_shot_bundle
from tests.triton.test_serve_process import folders, left, wait_for

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def index(tiny_served: Bundle, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("on_triton")
    embed_gallery(pictures, root / "gallery", LocalEncoder(tiny_served))
    build_index(read_gallery(root / "gallery"), root / "index")
    return root / "index"


@pytest.fixture(scope="module")
def ports() -> tuple[int, ...]:
    return tuple(free_ports(3))


@pytest.fixture(scope="module")
def running(tiny_served, index, ports, tmp_path_factory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("scratch")
    http, grpc, metrics = ports
    triton = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
    with live(folder, tiny_served.root, "--index", index, *triton, TMPDIR=str(folder)) as service:
        names = set(folders(folder))
        yield service
    assert left(folder, names) == []


def test_searches_answer_as_the_library_does(running, tiny_served, index, pictures) -> None:
    photo = (pictures / "000007.jpg").read_bytes()
    expected = open_retriever(LocalEncoder(tiny_served), index).search(image=photo, text="in blue", k=6)
    with running.client() as client:
        asked = {"text": "in blue", "k": "6", "include_reference": "true"}
        answer = client.post("/v1/search", files={"image": photo}, data=asked).json()
        assert ids(answer["results"][0]) == [match.id for match in expected]
        bad = problem(client.post("/v1/search", json={"queries": [{"id": "000001.jpg"}, {"image": "AAAA"}]}))
        assert (bad["type"], bad["position"]) == ("urn:cirrus:InvalidImage", 1)
        many = search(client, *({"id": f"{n:06}.jpg"} for n in range(32)), k=1, include_reference=True)
        assert len(many["results"]) == 32


def test_the_server_passes_the_canary_over_both_transports(running, tiny_served, ports) -> None:
    canary = read_canary(tiny_served)
    for port, transport in zip(ports, (Transport.HTTP, Transport.GRPC), strict=False):
        names = ServedNames(tiny_served.spec, shared=False)
        result = replay(canary, tiny_served.spec, TritonRunner(f"127.0.0.1:{port}", names, transport=transport))
        result.check("the server")
    printed = cirrus("verify", tiny_served.root, "--server", f"127.0.0.1:{ports[1]}")
    assert "query_head" in printed
    assert "answers as the original does" in printed
    with running.client() as client:
        assert client.get("/readyz").json()["parts"][0]["cosine"] > 0.99999


def test_clients_that_hang_up_cost_little_and_never_end_the_server(running, pictures) -> None:
    """Triton 24.10 does not survive every cancellation (server#7368), so it is sent none."""
    photo = (pictures / "000007.jpg").read_bytes()
    before = servers_below(running.log.parent)

    async def hang_up(after_s: float) -> None:
        async with httpx2.AsyncClient(base_url=running.url) as client:
            images = [photo + os.urandom(8) for _ in range(40)]  # bytes behind the end keep the cache out of it
            asking = [asyncio.create_task(client.post("/v1/search", files={"image": image})) for image in images]
            await asyncio.sleep(after_s)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    for number in range(15):
        asyncio.run(hang_up(0.02 + 0.01 * (number % 8)))
    with running.client() as client:
        assert client.post("/v1/search", files={"image": photo}).status_code == 200
        waiting = [line for line in client.get("/metrics").text.splitlines() if line.startswith("cirrus_waiting")]
        assert [line.rpartition(" ")[2] for line in waiting] == ["0.0"]
    assert servers_below(running.log.parent) == before != []


@pytest.mark.parametrize("cancels", [True, False])
@pytest.mark.parametrize("target", [True, False])
def test_a_server_that_survives_it_is_told_of_a_cancellation_and_another_is_not(
    cancels: bool, target: bool, tiny_served: Bundle
) -> None:
    told, asked = threading.Event(), threading.Event()

    class Slow(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request, context):
            context.add_callback(told.set)
            asked.set()
            done.wait(20)
            context.abort(grpc.StatusCode.INTERNAL, "too late")

    done = threading.Event()
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Slow(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def scenario() -> None:
        encoder = AsyncTritonEncoder(f"127.0.0.1:{port}", retry=RetryPolicy(attempts=1))
        space = SpaceSpec.of({}, dim=4, vectors=1, similarity=Similarity.COSINE)
        encoder._served = ServedModel(space, 8, frozenset(EnsembleName), None)
        names = ServedNames(tiny_served.spec, shared=False)
        queries = TritonQueries(encoder, names=names, max_waiting=4, max_sent=1, cancels=cancels)
        asking = (
            queries.encode_targets([jpeg()]) if target else queries.encode([(None, "red")], Stopwatch())
            for _ in range(2)
        )
        first, second = map(asyncio.create_task, asking)
        assert await asyncio.to_thread(asked.wait, 10)
        assert queries.waiting() == 2
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert queries.waiting() == 0
        assert await asyncio.to_thread(told.wait, 5 if cancels else 0.5) == cancels
        done.set()
        await encoder.close()

    asyncio.run(scenario())
    server.stop(None)


def test_a_triton_with_a_damaged_graph_is_named_by_verify_and_makes_the_service_not_ready(
    tiny_served, index, tmp_path
) -> None:
    made = damaged(tiny_served, tmp_path / "damaged", "text_encoder")
    with_repository(made)
    http, grpc, metrics = free_ports(3)
    triton = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
    with live(tmp_path, made.root, "--index", index, *triton) as service, service.client() as client:
        refused = client.get("/readyz")
        assert (refused.status_code, problem(refused)["part"]) == (503, "text_encoder")
        message = cirrus("verify", tiny_served.root, "--server", f"127.0.0.1:{grpc}", fails=True)
    assert "NotReady: the server at" in message
    assert "stage text_encoder does not answer rightly" in message


def test_a_bundle_of_another_space_takes_over_with_a_server_of_its_own(tiny_served, index, pictures, tmp_path) -> None:
    first, second = tmp_path / "served", tmp_path / "next"
    shutil.copytree(tiny_served.root, first / "bundle")
    shutil.copytree(index, first / "index")
    made = write_tiny_zero_shot_bundle(second / "bundle")
    with_repository(made)
    embed_gallery(pictures, second / "gallery", LocalEncoder(made))
    build_index(read_gallery(second / "gallery"), second / "index")
    http, grpc_port, metrics = ports_with_more_behind()
    triton = ("--http-port", http, "--grpc-port", grpc_port, "--metrics-port", metrics)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = (first / "bundle", "--index", first / "index", *triton)
    with live(tmp_path, *arguments, TMPDIR=str(scratch)) as service, service.client() as client:
        old = servers_below(scratch)
        for part in ("bundle", "index"):
            (first / part).rename(tmp_path / f"old {part}")
            (second / part).rename(first / part)
        deadline = time.monotonic() + 60
        query = {"queries": [{"id": "000003.jpg"}]}
        spaces = {client.post("/v1/search", json=query).json()["space"]}
        while made.spec.space.fingerprint not in spaces:
            assert time.monotonic() < deadline, service.log.read_text()
            answer = client.post("/v1/search", json=query)
            assert answer.status_code == 200
            spaces.add(answer.json()["space"])
            time.sleep(0.1)
        assert spaces == {tiny_served.spec.space.fingerprint, made.spec.space.fingerprint}
        while set(servers_below(scratch)) & set(old):
            assert time.monotonic() < deadline, "the old server was not stopped"
            time.sleep(0.2)
        assert len(servers_below(scratch)) == 1
        assert client.post("/v1/search", json=query).status_code == 200


def test_a_triton_that_was_killed_is_started_again(running, pictures) -> None:
    (server,) = servers_below(running.log.parent)
    os.kill(server, signal.SIGKILL)
    with running.client() as client:
        refused = client.get("/readyz")
        assert (refused.status_code, problem(refused)["type"]) == (503, "urn:cirrus:NotReady")
    photo = (pictures / "000007.jpg").read_bytes()
    deadline = time.monotonic() + 60
    statuses = set()
    with running.client() as client:
        while 200 not in statuses:
            assert time.monotonic() < deadline, statuses
            answer = client.post("/v1/search", files={"image": photo + os.urandom(8)})
            statuses.add(answer.status_code)
            time.sleep(0.2)
        assert statuses <= {200, 502, 503, 504}
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline, client.get("/readyz").text
            time.sleep(0.2)


def ports_with_more_behind() -> tuple[int, int, int]:
    """Return ports with three free ones behind them, for a second server. No outgoing connection is given them."""
    firsts = random.sample(range(20_000, 30_000, 6), 100)
    first = next(first for first in firsts if are_free("127.0.0.1", range(first, first + 6)))
    return first, first + 1, first + 2


def servers_below(scratch: Path) -> list[int]:
    """Return the process ids of the Triton servers whose models are below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text().split("\0")
            if words[0].endswith("/tritonserver") and any(str(scratch) in word for word in words):
                found.append(int(path.parent.name))
    return found


def test_a_triton_that_goes_away_is_a_typed_problem(tiny_served, index, tmp_path) -> None:

    http, grpc, metrics = free_ports(3)
    repository = tiny_served.root / "triton" / Flavour.PYTHON

    async def ask(queries: TritonQueries) -> None:
        await queries.encode([(None, None)], Stopwatch())

    with TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics) as server:
        url = server.grpc_url
    names = ServedNames(tiny_served.spec, shared=False)
    queries = TritonQueries(AsyncTritonEncoder(url, retry=RetryPolicy(attempts=1)), names=names, max_waiting=4)
    with pytest.raises(ServerUnavailable):
        asyncio.run(ask(queries))
    assert queries.waiting() == 0


def test_a_service_encodes_on_a_server_that_runs_elsewhere_and_comes_back(
    tiny_served, index, pictures, tmp_path
) -> None:
    repository = tiny_served.root / "triton" / Flavour.PYTHON
    http, grpc_port, metrics = free_ports(3)
    server = TritonServer(repository, http_port=http, grpc_port=grpc_port, metrics_port=metrics)
    options = ("--index", index, "--triton", f"127.0.0.1:{grpc_port}", "--canary-s", 3)
    with server, live(tmp_path, tiny_served.root, *options) as service, service.client() as client:
        assert client.get("/readyz").status_code == 200
        query = {"queries": [{"id": "000001.jpg", "text": "green"}], "k": 5}
        found = client.post("/v1/search", json=query).json()["results"]
        server.stop()
        assert client.get("/readyz").status_code == 503
        lost = client.post("/v1/search", json=query)
        assert (lost.status_code, problem(lost)["type"]) == (503, "urn:cirrus:ServerUnavailable")
        server.start()
        wait_for(lambda: client.get("/readyz").status_code == 200, "the service is not ready again")
        assert client.post("/v1/search", json=query).json()["results"] == found


def test_one_server_elsewhere_encodes_for_two_collections(tiny_served, index, pictures, tmp_path) -> None:
    made = write_tiny_zero_shot_bundle(tmp_path / "other")
    embed_gallery(pictures, tmp_path / "gallery", LocalEncoder(made))
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    write_shared_repository([tiny_served, made], Flavour.PYTHON, tmp_path / "shared")
    http, grpc_port, metrics = free_ports(3)
    server = TritonServer(tmp_path / "shared", http_port=http, grpc_port=grpc_port, metrics_port=metrics)
    further = f"{made.spec.name}={made.root},{tmp_path / 'index'}"
    options = ("--index", index, "--triton", f"127.0.0.1:{grpc_port}", "--collection", further)
    with server, live(tmp_path, tiny_served.root, *options) as service, service.client() as client:
        assert client.get("/readyz").status_code == 200
        for bundle, folder in ((tiny_served, index), (made, tmp_path / "index")):
            with open_retriever(LocalEncoder(bundle), folder) as retriever:
                expected = retriever.search(image=pictures / "000003.jpg", text="red", k=5)
            query = {"queries": [{"id": "000003.jpg", "text": "red"}], "collection": bundle.spec.name, "k": 5}
            (result,) = client.post("/v1/search", json=query | {"include_reference": True}).json()["results"]
            assert ids(result) == [match.id for match in expected]
            verified = cirrus("verify", bundle.root, "--server", f"127.0.0.1:{grpc_port}", "--name", bundle.spec.name)
            assert "every stage" in verified
        (tmp_path / "alone").mkdir()
        with live(tmp_path / "alone", tiny_served.root, *options[:4]) as alone, alone.client() as client:
            assert client.get("/readyz").status_code == 200, "it has one bundle, and the server has two"


def test_a_server_that_is_not_there_is_waited_for_and_named(tiny_served, index, monkeypatch) -> None:
    monkeypatch.setattr(encoders, "_STARTS_WITHIN_S", 0.5)
    (port,) = free_ports(1)
    remote = RemoteTriton(f"127.0.0.1:{port}")
    with (
        Encoders(Limits(), Metrics(), triton=remote) as opened,
        pytest.raises(ServerUnavailable, match=rf"127\.0\.0\.1:{port} was not ready within"),
    ):
        opened.open(Source(tiny_served.root, index))
