"""What is in flight: batched, bounded, cancelled where nobody waits, and never mixed by a swap."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from socket import create_connection
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import EngineError, ServerError, TooManyRequests
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.service.batching import Batcher
from cirrus_client.service.collection import Source
from cirrus_client.service.door import flow
from cirrus_client.service.door.flow import Flow
from cirrus_client.service.encoders import Encoders
from cirrus_client.service.limits import Limits
from cirrus_client.service.metrics import Metrics
from cirrus_client.service.registry import Registry
from tests.service.live import live
from tests.service.test_search import problem
from tests.tiny import write_tiny_bundle, write_tiny_zero_shot_bundle

pytestmark = pytest.mark.slow


def test_what_comes_while_a_batch_runs_is_the_next_batch_and_what_is_cancelled_is_not_run() -> None:
    async def scenario() -> None:
        batches: list[Sequence[int]] = []
        free = asyncio.Event()

        async def run(items: Sequence[int]) -> Sequence[int]:
            batches.append(items)
            await free.wait()
            return [10 * item for item in items]

        batcher: Batcher[int, int] = Batcher(run, max_batch=4, max_waiting=100)
        tasks = [asyncio.create_task(batcher.submit([0]))]
        await asyncio.sleep(0.01)
        assert batches == [[0]]
        tasks += [asyncio.create_task(batcher.submit([item])) for item in range(1, 9)]
        await asyncio.sleep(0.01)
        tasks[2].cancel()
        await asyncio.sleep(0)
        free.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert batches == [[0], [1, 3, 4, 5], [6, 7], [8]], "sizes are powers of two"
        assert [answer[0].result for answer in answers if isinstance(answer, list)] == [0, 10, 30, 40, 50, 60, 70, 80]
        assert isinstance(answers[2], asyncio.CancelledError)
        assert not len(batcher)

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_a_failed_batch_fails_alone() -> None:
    async def scenario() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            if 0 in items:
                raise EngineError("broken")
            return items

        batcher: Batcher[int, int] = Batcher(run, max_batch=1, max_waiting=3)
        with pytest.raises(TooManyRequests) as refused:
            await batcher.submit([1, 2, 3, 4])
        assert refused.value.retry_after_s > 0
        failed, good = await asyncio.gather(batcher.submit([0]), batcher.submit([5]), return_exceptions=True)
        assert isinstance(failed, EngineError)
        assert good[0].result == 5
        assert (await batcher.submit([7]))[0].result == 7

    asyncio.run(scenario())


def test_more_queries_than_may_wait_get_429_with_retry_after(serve) -> None:
    full = serve(limits=Limits(max_waiting=2))
    answer = full.post("/v1/search", json={"queries": [{"id": f"{n:06}.jpg"} for n in range(3)]})
    assert (answer.status_code, problem(answer)["type"]) == (429, "urn:cirrus:TooManyRequests")
    assert int(answer.headers["retry-after"]) == answer.json()["retry_after_s"]
    assert full.post("/v1/search", json={"queries": [{"id": "000001.jpg"}]}).status_code == 200


def run_flow(limits: Limits, *, gone_after_s: float | None) -> tuple[list[dict], list[str]]:
    """Run an application that never answers, and return what was sent and what happened to it."""
    sent: list[dict] = []
    ends: list[str] = []

    async def app(scope, receive, send) -> None:
        assert (await receive())["body"] == b"abc"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async def scenario() -> None:
        messages = [{"type": "http.request", "body": b"abc", "more_body": False}]

        async def receive() -> dict:
            if messages:
                return messages.pop()
            await asyncio.sleep(60 if gone_after_s is None else gone_after_s)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        await Flow(app, limits)({"type": "http", "path": "/", "headers": []}, receive, send)

    asyncio.run(asyncio.wait_for(scenario(), 10))
    return sent, ends


def test_a_client_that_hangs_up_ends_its_request() -> None:
    assert run_flow(Limits(), gone_after_s=0.05) == ([], ["cancelled"])


def test_a_request_that_takes_too_long_is_ended_and_answered() -> None:
    sent, ends = run_flow(Limits(timeout_s=0.05), gone_after_s=None)
    assert ends == ["cancelled"]
    assert sent[0]["status"] == 504


def test_bodies_have_a_limit_each_and_one_together_whatever_their_parts(monkeypatch) -> None:
    async def app(scope, receive, send) -> None:
        await receive()
        await scope["ends"].wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> None:
        door, now, later = Flow(app, Limits(max_body_bytes=6)), asyncio.Event(), asyncio.Event()
        now.set()

        async def status(*parts: bytes, ends: asyncio.Event = now) -> int:
            messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
            messages[-1]["more_body"] = False
            sent: list[dict] = []

            async def receive() -> dict:
                return messages.pop(0) if messages else await asyncio.sleep(60, {"type": "http.disconnect"})

            async def send(message: dict) -> None:
                sent.append(message)

            await door({"type": "http", "path": "/", "headers": [], "ends": ends}, receive, send)
            return sent[0]["status"]

        assert await status(b"abc", b"abc") == 200
        assert await status(b"abc", b"abc", b"d") == 413
        held = asyncio.ensure_future(status(b"abc", b"abc", ends=later))
        await asyncio.sleep(0.01)
        assert [await status(b"abc", part) for part in (b"d", b"de")] == [200, 429]
        later.set()
        assert await held == await status(b"abc", b"de") == 200

    monkeypatch.setattr(flow, "_HELD_BYTES", 10)
    asyncio.run(asyncio.wait_for(scenario(), 10))


def numbered(gallery, index, number: int) -> None:
    paths = read_gallery(gallery).paths
    table = pa.table({"image_path": list(paths), "version": [number] * len(paths)})
    build_index(read_gallery(gallery), index, metadata=table)


def test_a_swap_under_load_loses_mixes_and_mistakes_no_answer(bundle, gallery_root, tmp_path) -> None:
    index = tmp_path / "index"
    numbered(gallery_root, index, 0)
    stop = threading.Event()
    answers: list[tuple[int, set[int]]] = []

    def ask(url_client) -> None:
        while not stop.is_set():
            answer = url_client.post("/v1/search", json={"queries": [{"id": "000003.jpg"}] * 2, "k": 20})
            items = [item for result in answer.json().get("results", []) for item in result["items"]]
            answers.append((answer.status_code, {item["metadata"]["version"] for item in items}))

    def wait_for(number: int) -> None:
        deadline = time.monotonic() + 30
        while not any(number in versions for _, versions in list(answers)):
            assert time.monotonic() < deadline, f"no answer has version {number}"
            time.sleep(0.01)

    with live(tmp_path, bundle.root, "--index", index, "--in-process") as service, ThreadPoolExecutor(4) as pool:
        clients = [service.client() for _ in range(4)]
        asking = [pool.submit(ask, client) for client in clients]
        for number in range(1, 5):
            wait_for(number - 1)
            numbered(gallery_root, index, number)
            if number % 2:
                assert clients[0].post(f"/v1/collections/{bundle.spec.name}/reload").status_code == 200
            else:
                deadline = time.monotonic() + 30
                while version_of(clients[0]) != number:
                    assert time.monotonic() < deadline, "the new index was not noticed"
                    time.sleep(0.1)
        wait_for(4)
        stop.set()
        for asked in asking:
            asked.result()
    assert {status for status, _ in answers} == {200}
    assert all(len(versions) == 1 for _, versions in answers)
    assert {version for _, versions in answers for version in versions} >= {0, 1, 2, 3, 4}


def version_of(client) -> int:
    return client.get("/v1/items/000003.jpg").json()["metadata"]["version"]


def test_a_damaged_or_foreign_index_is_not_served_and_the_old_one_is(
    bundle, gallery_root, text_source, tmp_path
) -> None:
    index = tmp_path / "index"
    numbered(gallery_root, index, 0)
    with live(tmp_path, bundle.root, "--index", index, "--in-process") as service, service.client() as client:
        whole = (index / "vectors.faiss").read_bytes()
        (index / "vectors.faiss").write_bytes(whole[:-8])
        name = bundle.spec.name
        refused = problem(client.post(f"/v1/collections/{name}/reload"))
        assert (refused["type"], refused["status"]) == ("urn:cirrus:SearchIndexError", 503)
        assert str(tmp_path) not in str(refused)
        assert client.post("/v1/search", json={"queries": [{"id": "000003.jpg"}]}).status_code == 200
        assert client.get("/v1/collections").json()["collections"][0]["problem"] == (
            "the newer version is not served (SearchIndexError); the log says why"
        )
        assert "vectors.faiss" in service.log.read_text()
        foreign = text_source.index
        for name_of_file in ("index.json", "vectors.faiss", "items.parquet"):
            (index / name_of_file).write_bytes((foreign / name_of_file).read_bytes())
        mismatch = client.post(f"/v1/collections/{name}/reload")
        assert (mismatch.status_code, problem(mismatch)["type"]) == (409, "urn:cirrus:SpaceMismatch")
        assert str(tmp_path) not in mismatch.text
        assert f"request {problem(mismatch)['request_id']}: SpaceMismatch: bundle" in service.log.read_text()
        numbered(gallery_root, index, 0)
        assert client.post(f"/v1/collections/{name}/reload").json()["problem"] is None


def test_an_index_that_was_away_and_is_back_is_no_problem(bundle, gallery_root, tmp_path) -> None:
    index, away = tmp_path / "index", tmp_path / "away"
    numbered(gallery_root, index, 0)

    def told(client, problem: bool) -> bool:
        deadline = time.monotonic() + 30
        while (client.get("/v1/collections").json()["collections"][0]["problem"] is not None) is not problem:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    with live(tmp_path, bundle.root, "--index", index, "--in-process") as service, service.client() as client:
        index.rename(away)
        assert told(client, problem=True)
        away.rename(index)
        assert told(client, problem=False)


def test_two_versions_that_no_request_could_tell_apart_are_refused(bundle, index_root) -> None:
    source = Source(bundle.root, index_root)
    with Encoders(Limits(), Metrics(), triton=None, engine="onnxruntime") as encoders:
        registry = Registry(encoders.open)
        with pytest.raises(ServerError, match=r"collection shop: two of its versions have space [0-9a-f]{16},"):
            registry.add("shop", [source, source])


def test_a_version_of_another_space_runs_beside_until_it_is_switched_to(pictures, tmp_path) -> None:
    folders = {}
    for name, write in (("blue", write_tiny_bundle), ("green", write_tiny_zero_shot_bundle)):
        made = write(tmp_path / name / "bundle")
        embed_gallery(pictures, tmp_path / name / "gallery", LocalEncoder(made))
        build_index(read_gallery(tmp_path / name / "gallery"), tmp_path / name / "index")
        folders[name] = (made, tmp_path / name / "index")
    (blue, blue_index), (green, green_index) = folders["blue"], folders["green"]
    beside = f"{blue.spec.name}={green.root},{green_index}"
    arguments = (blue.root, "--index", blue_index, "--collection", beside, "--in-process")
    with live(tmp_path, *arguments) as service, service.client() as client:
        spaces = [blue.spec.space.fingerprint, green.spec.space.fingerprint]

        def space(collection: str | None) -> str:
            body = {"queries": [{"id": "000003.jpg"}], "collection": collection}
            return client.post("/v1/search", json=body).json()["space"]

        name = blue.spec.name
        assert [space(None), space(f"{name}@{spaces[1][:16]}")] == spaces
        switched = client.post(f"/v1/collections/{name}/switch", json={"space": spaces[1]}).json()
        assert [version["active"] for version in switched["versions"]] == [False, True]
        assert [space(None), space(f"{name}@{spaces[0][:16]}")] == [spaces[1], spaces[0]]
        assert problem(client.post(f"/v1/collections/{name}/switch", json={"space": "0000"}))["field"] == "space"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_a_service_in_one_line_and_its_exit_code(bundle, index_root, tmp_path, number) -> None:
    with live(tmp_path, bundle.root, "--index", index_root, "--in-process") as service, service.client() as client:
        assert client.get("/").status_code == 200
        service.process.send_signal(number)
        assert service.process.wait(timeout=30) == 128 + number
    assert service.log.read_text().splitlines()[-1].endswith("the server was stopped")
    assert "Traceback" not in service.log.read_text()


def test_every_option_can_come_from_the_environment(bundle, index_root, tmp_path) -> None:
    options = {"CIRRUS_SERVE_INDEX": str(index_root), "CIRRUS_SERVE_IN_PROCESS": "1", "CIRRUS_SERVE_RATE": "0.5"}
    with live(tmp_path, bundle.root, **options) as service, service.client() as client:
        answers = [client.get("/v1/collections").status_code for _ in range(3)]
    assert answers == [200, 429, 429]


def test_an_idle_connection_stays_open_and_one_of_endless_headers_does_not(bundle, index_root, tmp_path) -> None:
    """Longer than uvicorn's own 5 s, after which a proxy would send its next request into a closed connection."""
    with live(tmp_path, bundle.root, "--index", index_root, "--in-process") as service:
        address = urlsplit(service.url)
        connection = HTTPConnection(str(address.hostname), address.port)
        connection.connect()
        connection.auto_open = False
        for pause_s in (6.0, 0.0):
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            time.sleep(pause_s)
        connection.close()
        with create_connection((str(address.hostname), address.port)) as endless:
            endless.settimeout(10)
            endless.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * 100_000)
            assert endless.recv(100).startswith(b"HTTP/1.1 4"), "headers without an end are refused"
