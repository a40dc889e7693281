"""How a newer version of a collection takes the place of the older one, and what is said about it."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import (
    InvalidRequest,
    NotReady,
    SearchIndexError,
    ServerError,
    ServerUnavailable,
    StoredDataError,
    UnknownCollection,
)
from cirrus_client.replay import LocalRunner
from cirrus_client.service import encoders as encoders_module
from cirrus_client.service import readiness
from cirrus_client.service.collection import Source, Version
from cirrus_client.service.encoders import Encoders
from cirrus_client.service.limits import Limits
from cirrus_client.service.metrics import Metrics
from cirrus_client.service.options import TritonOptions
from cirrus_client.service.readiness import Canaries
from cirrus_client.service.registry import Registry
from cirrus_client.service.warming import keep_warm
from cirrus_client.triton.listening import are_free, listening
from cirrus_client.triton.server import TritonServer

Opening = Callable[[Source], Version]


class Folders:
    """Opens sources, or does what a test puts in its place."""

    def __init__(self, encoders: Encoders) -> None:
        self.encoders = encoders
        self.really: Opening = encoders.open
        self.open = self.really

    def __call__(self, source: Source) -> Version:
        return self.open(source)


@pytest.fixture
def folders() -> Iterator[Folders]:
    with Encoders(Limits(), Metrics(), triton=None, engine="onnxruntime") as encoders:
        yield Folders(encoders)


@pytest.fixture
def source(bundle, index_root) -> Source:
    return Source(bundle.root, index_root)


class OnlyListening(TritonServer):
    """A server that listens on its ports and does nothing else."""

    def start(self) -> None:
        self.held = [listening("127.0.0.1", port) for port in (self.http_port, self.grpc_port, self.metrics_port)]

    def stop(self) -> None:
        for held in self.held:
            held.close()


def test_tritons_of_further_bundles_take_the_next_ports(bundle, index_root, tmp_path, monkeypatch) -> None:
    """What reads their metrics finds them again when one has taken another's place."""
    monkeypatch.setattr(encoders_module, "TritonServer", OnlyListening)
    monkeypatch.setattr(encoders_module, "survives_cancellation", lambda url: True)
    bundles = [Bundle.open(shutil.copytree(bundle.root, tmp_path / name)) for name in ("a", "b", "c")]
    first = next(port for port in count(20_000, 10) if are_free("127.0.0.1", range(port, port + 9)))
    options = TritonOptions(first, first + 1, first + 2)
    with Encoders(Limits(), Metrics(), triton=options) as encoders:
        opened = [encoders.open(Source(one.root, index_root)) for one in bundles]
        assert [server.metrics_port - first for server in encoders._servers] == [2, 5, 8]
        replaced = encoders._servers[1]
        del opened[1]
        deadline = time.monotonic() + 20
        while any(held.fileno() >= 0 for held in replaced.held) and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        opened.append(encoders.open(Source(bundles[1].root, index_root)))
        assert [server.metrics_port - first for server in encoders._servers] == [2, 8, 5]


def test_a_bundle_that_was_replaced_gets_another_encoder(bundle, index_root, text_source, tmp_path) -> None:
    place = shutil.copytree(bundle.root, tmp_path / "bundle")
    with Encoders(Limits(), Metrics(), triton=None, engine="onnxruntime") as encoders:
        first, again = (encoders.open(Source(place, index_root)) for _ in range(2))
        assert first.encoder is again.encoder
        shutil.rmtree(place)
        shutil.copytree(text_source.bundle, place)
        assert encoders.open(Source(place, text_source.index)).encoder is not first.encoder


async def watched(registry: Registry, until: Callable[[], bool]) -> None:
    watching = asyncio.create_task(registry.watch(0.01))
    async with asyncio.timeout(10):
        while not until():
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # it looks ten times more
    watching.cancel()


def test_a_version_that_memory_has_no_room_for_is_a_problem_and_tried_once(folders, source) -> None:
    registry = Registry(folders)
    registry.add("shop", [source])
    tried: list[Source] = []

    def fails(source: Source) -> Version:
        tried.append(source)
        raise MemoryError

    async def scenario() -> None:
        folders.open = fails
        (version,) = (version for _, version in registry.versions())
        object.__setattr__(version, "state", (None, None))  # another one is on disk
        await watched(registry, lambda: bool(tried))
        assert len(tried) == 1
        with pytest.raises(StoredDataError, match="not enough memory"):
            await registry.reload("shop")
        await watched(registry, lambda: True)

    asyncio.run(scenario())
    assert len(tried) == 2
    assert registry.info("shop", suggest=False).problem is not None


def test_a_folder_that_is_back_before_it_was_missed_leaves_no_problem(folders, source, tmp_path) -> None:
    index = shutil.copytree(source.index, tmp_path / "index")
    registry = Registry(folders)
    registry.add("shop", [Source(source.bundle, index)])

    async def scenario() -> None:
        index.rename(tmp_path / "away")
        with pytest.raises(SearchIndexError):
            await registry.reload("shop")
        assert registry.info("shop", suggest=False).problem is not None
        (tmp_path / "away").rename(index)
        await watched(registry, lambda: registry.info("shop", suggest=False).problem is None)

    asyncio.run(scenario())


def test_versions_that_come_to_have_one_space_are_refused_and_the_old_ones_served(folders, source, text_source) -> None:
    registry = Registry(folders)
    registry.add("shop", [source, text_source])
    spaces = [version.space for _, version in registry.versions()]
    with pytest.raises(InvalidRequest, match="2 versions of 'shop' have a space"):
        registry.switch("shop", "")
    with pytest.raises(UnknownCollection, match="has no version of space"):
        registry.find(f"shop@{spaces[0][:8]}-")
    folders.open = lambda _: folders.really(source)
    with pytest.raises(ServerError, match="two of its versions have space"):
        asyncio.run(registry.reload("shop"))
    assert [version.space for _, version in registry.versions()] == spaces


def test_a_service_that_ends_waits_for_no_version_that_is_being_opened(folders, source) -> None:
    """A large index takes minutes, and a Triton server elsewhere may never answer."""
    registry = Registry(folders)
    registry.add("shop", [source])
    ends, opened = threading.Event(), threading.Event()

    def waits(source: Source) -> Version:
        ends.wait(10)
        opened.set()
        return folders.really(source)

    async def scenario() -> None:
        folders.open = waits
        reloading = asyncio.create_task(registry.reload("shop"))
        await asyncio.sleep(0.05)
        await registry.close()
        assert not opened.is_set()
        ends.set()
        await reloading

    asyncio.run(scenario())


def test_a_version_that_is_replaced_while_it_is_warmed_is_let_go(folders, source) -> None:
    """Under a load that never ends it stayed in memory for ever, the whole index of it."""
    registry = Registry(folders)
    registry.add("shop", [source])
    old = weakref.ref(registry.find("shop")[1])

    async def scenario() -> None:
        registry.find("shop")[1].encoder._in_flight = 1
        warming = asyncio.create_task(keep_warm(registry))
        await asyncio.sleep(0.1)
        await registry.reload("shop")
        async with asyncio.timeout(10):
            while old() is not None:
                gc.collect()
                await asyncio.sleep(0.01)
        warming.cancel()

    asyncio.run(scenario())


def test_a_service_stays_ready_while_an_index_is_replaced(folders, source) -> None:
    """What encodes is the same. A load balancer took all its replicas out at once until the canary was replayed."""
    registry = Registry(folders)
    registry.add("shop", [source])
    canaries = Canaries(registry)

    async def scenario() -> None:
        await canaries.replay()
        before = registry.find("shop")[1]
        await registry.reload("shop")
        assert registry.find("shop")[1] is not before
        assert (await canaries.readiness()).status == "ready"
        canaries.forget()
        with pytest.raises(NotReady, match="not replayed yet"):
            await canaries.readiness()

    asyncio.run(scenario())


def test_what_is_not_ready_names_no_machine_and_is_tried_again_soon(
    folders, source, text_source, monkeypatch, caplog
) -> None:
    registry = Registry(folders)
    registry.add("shop", [source, text_source])
    version = registry.find("shop")[1]

    class Away(LocalRunner):
        def step(self, model: str, inputs: Arrays) -> Arrays:
            raise ServerUnavailable("the server at inner.example:8001 is not available")

    runner = version.encoder.runner
    monkeypatch.setattr(version.encoder, "runner", lambda: Away(version.encoder._encoder))
    canaries = Canaries(registry)

    async def ready() -> None:
        await canaries.replay()
        await canaries.readiness()

    with pytest.raises(NotReady, match="does not answer; the log says why") as refused:
        asyncio.run(ready())
    assert "inner.example" not in str(refused.value)
    assert "inner.example" in caplog.text
    assert canaries.passed() == {"shop": False}, "though another version of it answers rightly"

    async def ready_again() -> None:
        again = asyncio.create_task(canaries.keep_on(1_000))
        async with asyncio.timeout(20):
            while not canaries.passed()["shop"]:
                await asyncio.sleep(0.05)
        again.cancel()

    monkeypatch.setattr(readiness, "_AGAIN_S", 0)
    monkeypatch.setattr(version.encoder, "runner", runner)
    asyncio.run(ready_again())


def test_a_triton_that_could_not_be_started_again_is_tried_once_more(folders) -> None:
    """After one failure it was left alone for ever."""
    outcomes = [ServerError("its port is taken"), None]

    class Server(TritonServer):
        @property
        def is_running(self) -> bool:
            return not outcomes

        def start(self) -> None:
            if (error := outcomes.pop(0)) is not None:
                raise error

    folders.encoders._servers = [Server(Path("nowhere"))]
    assert [folders.encoders.revive() for _ in range(3)] == [False, True, False]


def test_what_is_said_of_a_collection_is_of_one_version(folders, source, text_source, monkeypatch) -> None:
    """The columns of a large index take seconds, and meanwhile a newer version may take its place."""
    registry = Registry(folders)
    registry.add("shop", [source])
    (old,) = (version for _, version in registry.versions())
    described, replaced = threading.Event(), threading.Event()

    def columns() -> list:
        described.set()
        assert replaced.wait(10)
        return []

    monkeypatch.setattr(old.saved.items, "columns", columns)

    async def scenario() -> None:
        asked = asyncio.ensure_future(asyncio.to_thread(registry.info, "shop", suggest=False))
        await asyncio.to_thread(described.wait, 10)
        folders.open = lambda _: folders.really(text_source)
        await registry.reload("shop")
        replaced.set()
        found = await asked
        assert found.space == old.space == found.versions[0].space

    asyncio.run(scenario())


def test_what_is_said_after_a_swap_is_found_in_a_thread(serve, monkeypatch) -> None:
    """It stopped the service for as long as the columns of the new index take: two seconds for a million images."""
    client = serve()
    loop = client.portal.call(threading.get_ident)
    seen: list[int] = []

    def info(self: Registry, name: str, *, suggest: bool) -> object:
        seen.append(threading.get_ident())
        return really(self, name, suggest=suggest)

    really = Registry.info
    monkeypatch.setattr(Registry, "info", info)
    client.app.state.service = replace(client.app.state.service, suggester=object())
    (collection, *_) = client.get("/v1/collections").json()["collections"]
    answers = [
        client.post(f"/v1/collections/{collection['name']}/reload"),
        client.post(f"/v1/collections/{collection['name']}/switch", json={"space": collection["space"]}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all(answer.json()["suggest"] for answer in answers), "as in the list"
    assert loop not in seen
