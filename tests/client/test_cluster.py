"""A Ray cluster writes the gallery that one process would, to the bit, whoever is killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import BundleError, ClusterError, SpaceMismatch
from cirrus_client.gallery import FolderSource, ImageFile, embed_gallery, open_source, read_gallery
from cirrus_client.gallery.cached_encoder import CachedEncoder
from cirrus_client.gallery.cluster import Cluster as Workers
from cirrus_client.gallery.cluster import _room, connected
from cirrus_client.gallery.cluster_tools import BundleTools, SharedCache, shared_cache
from cirrus_client.gallery.feature_cache import FeatureCache
from tests.client.test_sources import write_tars
from tests.conftest import BAD_IMAGES
from tests.tiny import write_pictures

pytestmark = pytest.mark.slow

ENGINE = "onnxruntime"
SIZES = {"shard_size": 4, "batch_size": 4}
WORKERS = 3


class Cluster:
    """A Ray cluster of this test's own."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster = RayCluster(
            initialize_head=True,
            head_node_args={"num_cpus": WORKERS, "include_dashboard": False, "object_store_memory": 2**28},
        )
        self.address: str = self._cluster.address

    def workers(self, kind: str = "_Worker") -> list[int]:
        """Return the process ids of the workers that embed, or of another kind of actor."""
        import psutil

        raylet = self._cluster.head_node.all_processes["raylet"][0].process.pid
        found = psutil.Process(raylet).children(recursive=True)
        return [process.pid for process in found if process.name().startswith(f"ray::{kind}")]

    @contextmanager
    def machine(self) -> Iterator[Callable[[], None]]:
        """Add a machine with a core, and yield what takes it away."""
        added = [self._cluster.add_node(num_cpus=1, object_store_memory=2**27)]
        self._cluster.wait_for_nodes()

        def take_away() -> None:
            self._cluster.remove_node(added.pop())

        yield take_away
        if added:
            take_away()

    def stop(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started = Cluster()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cluster") / "photos"
    shutil.copytree(pictures, root)
    shutil.copy(root / "000001.jpg", root / "twin.jpg")
    (root / "broken.jpg").write_bytes(BAD_IMAGES["truncated"][0])
    return root


def embed_alone(source: Any, out: Path, bundle: Bundle) -> dict[str, bytes]:
    embed_gallery(source, out, LocalEncoder(bundle, engine=ENGINE), **SIZES)
    return content(out)


def content(out: Path) -> dict[str, bytes]:
    """Return every file of a gallery."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


class SlowFolder(FolderSource):
    """A folder on a slow disk, so that there is time to kill somebody."""

    def read(self, file: ImageFile) -> bytes:
        time.sleep(0.4)
        return super().read(file)


class LargeFolder(SlowFolder):
    """One that is sent to workers in a message as large as a list of thousands of images."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.entries = os.urandom(2**20)


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_a_cluster_writes_the_gallery_of_one_process(kind, cluster, folder, bundle, tmp_path) -> None:
    source = open_source(folder if kind == "folder" else write_tars(folder, tmp_path / "tars", tars=5))
    with connected(cluster.address, cores=1) as found:
        assert (found.workers, found.threads) == (WORKERS, 1)
        workforce = found.workforce(BundleTools(bundle.root, ENGINE))
        summary = embed_gallery(source, tmp_path / "out", LocalEncoder(bundle), workforce=workforce, **SIZES)
        again = embed_gallery(source, tmp_path / "out", LocalEncoder(bundle), workforce=workforce, **SIZES)
    assert (summary.embedded, summary.new, len(summary.rejected), summary.is_whole) == (61, 62, 1, True)
    assert (again.embedded, again.new) == (61, 0)
    assert content(tmp_path / "out") == embed_alone(source, tmp_path / "alone", bundle)


def test_workers_that_are_killed_cost_nothing_but_their_shards(cluster, folder, bundle, tmp_path) -> None:
    over, killed = threading.Event(), []

    def kill() -> None:
        while not over.wait(0.7) and len(killed) < 6:
            for pid in random.Random(len(killed)).sample(workers := cluster.workers(), min(1, len(workers))):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with connected(cluster.address, cores=1) as found:
            workforce = found.workforce(BundleTools(bundle.root, ENGINE))
            source = LargeFolder(folder)
            summary = embed_gallery(source, tmp_path / "out", LocalEncoder(bundle), workforce=workforce, **SIZES)
    finally:
        over.set()
        killer.join()
    assert len(killed) >= 2
    assert (summary.embedded, summary.new, summary.is_whole) == (61, 62, True)
    assert content(tmp_path / "out") == embed_alone(folder, tmp_path / "alone", bundle)


def test_a_machine_that_goes_for_good_costs_nothing_but_its_shards(cluster, folder, bundle, tmp_path) -> None:
    """What it was embedding goes to workers that run, and not to its own, for which Ray waits for another machine."""
    with cluster.machine() as take_away, connected(cluster.address, cores=1) as found:
        assert found.workers == WORKERS + 1
        workforce = found.workforce(BundleTools(bundle.root, ENGINE))

        def until_some_are_done() -> None:
            deadline = time.monotonic() + 60
            while not list((tmp_path / "out").glob("shards/*.json")) and time.monotonic() < deadline:
                time.sleep(0.01)
            take_away()

        taking = threading.Thread(target=until_some_are_done)
        taking.start()
        source = SlowFolder(folder)
        summary = embed_gallery(source, tmp_path / "out", LocalEncoder(bundle), workforce=workforce, **SIZES)
        taking.join()
    assert (summary.embedded, summary.is_whole) == (61, True)
    assert content(tmp_path / "out") == embed_alone(folder, tmp_path / "alone", bundle)


def test_what_can_not_be_started_anew_is_told(cluster, folder, bundle, tmp_path, monkeypatch) -> None:
    class Unreadable(FolderSource):
        def __setstate__(self, state: object) -> None:
            raise ZeroDivisionError("no such thing here")

    class Deadly(FolderSource):
        def __setstate__(self, state: object) -> None:
            os._exit(1)

    one = write_pictures(tmp_path / "one", 1)
    monkeypatch.setattr("cirrus_client.gallery.cluster._TRIES", 2)
    with connected(cluster.address, cores=1) as found:
        workforce = found.workforce(BundleTools(bundle.root, ENGINE))
        with pytest.raises(ClusterError, match=r"the source can't be used on .*no such thing here"):
            embed_gallery(Unreadable(one), tmp_path / "out", LocalEncoder(bundle), workforce=workforce, **SIZES)
        with pytest.raises(ClusterError, match="no worker can be started"):
            embed_gallery(Deadly(one), tmp_path / "one.out", LocalEncoder(bundle), workforce=workforce, **SIZES)


def test_a_feature_cache_whose_process_dies_is_told(cluster, folder, bundle, tmp_path) -> None:
    with connected(cluster.address, cores=1) as found:

        def kill() -> None:
            while not list((tmp_path / "out").glob("shards/*.json")):
                time.sleep(0.01)
            os.kill(cluster.workers("_CacheProcess")[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ClusterError, match=r"feature cache .* has died; run the same command again"):
            embed_with_cache(found, SlowFolder(folder), tmp_path, bundle)
        killer.join()


def die(threads: int | None) -> None:
    os._exit(1)


def test_a_question_whose_worker_dies_is_told(cluster) -> None:
    with connected(cluster.address, cores=1) as found, pytest.raises(ClusterError, match="no worker can be started"):
        found.ask(die)


def test_what_a_failed_job_put_into_the_feature_cache_is_kept(cluster, bundle, tmp_path) -> None:
    def fail(cache: SharedCache) -> None:
        for number in range(100):
            cache.put_all({f"{number:064x}": np.zeros(64, dtype=np.float16)})
        raise ZeroDivisionError

    with (
        connected(cluster.address, cores=1),
        pytest.raises(ZeroDivisionError),
        shared_cache(tmp_path / "cache", bundle.root) as cache,
    ):
        fail(cache)
    with FeatureCache(tmp_path / "cache", bundle) as kept:
        assert len(kept) == 100


def embed_with_cache(found: Any, source: Any, tmp_path: Path, bundle: Bundle) -> None:
    with shared_cache(tmp_path / "cache", bundle.root) as cache:
        workforce = found.workforce(BundleTools(bundle.root, ENGINE, cache=cache))
        embed_gallery(source, tmp_path / "out", LocalEncoder(bundle), workforce=workforce, **SIZES)


def test_a_driver_that_is_killed_resumes_when_it_is_started_again(cluster, folder, bundle, tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ["embed", str(folder), "--bundle", str(bundle.root), "--out", str(out), "--engine", ENGINE]
    arguments += ["--ray", cluster.address, "--ray-cores", "1", "--shard-size", "4", "--batch-size", "4"]
    command = [sys.executable, "-m", "cirrus_client.cli", *arguments]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("shards/*.json"))) < 2:
        assert driver.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    driver.kill()
    driver.wait()
    left = 16 - len(list(out.glob("shards/*.json")))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "61 images embedded" in done.stdout
    assert left > 0
    assert content(out) == embed_alone(folder, tmp_path / "alone", bundle)


def test_the_feature_cache_is_shared_with_the_cluster(cluster, folder, bundle, tmp_path) -> None:
    with connected(cluster.address, cores=1) as found:
        embed_with_cache(found, folder, tmp_path, bundle)
        with pytest.raises(SpaceMismatch), shared_cache(tmp_path / "cache", other_backbone(bundle, tmp_path)):
            pass

    class Unopened(FolderSource):
        def read(self, file: ImageFile) -> bytes:
            assert file.path == "broken.jpg"
            return super().read(file)

    with FeatureCache(tmp_path / "cache", bundle) as kept:
        assert len(kept) == 60
        cached = CachedEncoder(bundle, kept, engine=ENGINE)
        embed_gallery(Unopened(folder), tmp_path / "alone", cached, recollection=cached, **SIZES)
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def other_backbone(bundle: Bundle, tmp_path: Path) -> Path:
    from cirrus_client.image.preprocess import Pad
    from tests.tiny import write_tiny_bundle

    return write_tiny_bundle(tmp_path / "other", pad=Pad.NONE).root


def test_what_fails_on_a_worker_is_told_as_in_one_process(cluster, folder, bundle, tmp_path) -> None:
    class Vanishing(FolderSource):
        def read(self, file: ImageFile) -> bytes:
            raise ZeroDivisionError(file.path)

    with connected(cluster.address, cores=1) as found:
        workforce = found.workforce(BundleTools(bundle.root, ENGINE))
        nowhere = found.workforce(BundleTools(tmp_path / "nowhere", ENGINE))
        with pytest.raises(BundleError, match="nowhere"):
            embed_gallery(folder, tmp_path / "other", LocalEncoder(bundle), workforce=nowhere, **SIZES)
        with pytest.raises(ZeroDivisionError):
            embed_gallery(Vanishing(folder), tmp_path / "out", LocalEncoder(bundle), workforce=workforce, **SIZES)


def test_all_workers_run_the_engine_that_one_of_them_chose(cluster, bundle) -> None:
    with connected(cluster.address, cores=1) as found:
        assert found.ask(BundleTools(bundle.root).choose_engine) in {"onnxruntime", "openvino"}


def test_a_cluster_that_is_there_and_refuses_is_not_told_as_missing(cluster, monkeypatch) -> None:
    """Ray 2.60 sends a token to the `host:port` of a cluster that asks for one only if it is told to."""
    import ray

    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token") as told, connected(cluster.address):
        pass
    assert "there is no cluster" not in str(told.value)
    with pytest.raises(ClusterError, match="there is no cluster"), connected("auto"):
        pass


def test_a_cluster_that_is_not_there_or_too_small_is_told(cluster) -> None:
    with pytest.raises(ClusterError, match="ray start --head"), connected("127.0.0.1:1"):
        pass
    with pytest.raises(ClusterError, match="no machine has 64 cores"), connected(cluster.address, cores=64):
        pass


@pytest.mark.parametrize(
    ("machines", "cores", "expected"),
    [
        ([{"CPU": 16, "GPU": 2}], None, Workers(1, 8, 2)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 64}], 12, Workers(1, 12, 1)),
        ([{"CPU": 3, "GPU": 4}], None, Workers(1, 1, 3)),
        ([{"CPU": 6}, {"CPU": 0}, {"CPU": 20}], None, Workers(0, 6, 4)),
        ([{"CPU": 20}], None, Workers(0, 8, 2)),
    ],
)
def test_a_worker_is_planned_where_there_is_room_for_it(machines, cores, expected) -> None:
    assert _room([{"Alive": True, "Resources": found} for found in machines], "auto", cores) == expected


def test_a_worker_for_which_no_machine_with_a_gpu_has_the_cores_is_refused_and_not_waited_for() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 16, "GPU": 2}}, {"Alive": True, "Resources": {"CPU": 64}}]
    with pytest.raises(ClusterError, match="no machine with a GPU has 32 cores for a worker, they have 16; give"):
        _room(nodes, "auto", 32)


def test_an_empty_gallery_needs_no_worker(cluster, folder, bundle, tmp_path) -> None:
    embed_alone(folder, tmp_path / "out", bundle)
    with connected(cluster.address, cores=1) as found:
        workforce = found.workforce(BundleTools(bundle.root, ENGINE))
        assert embed_gallery(folder, tmp_path / "out", LocalEncoder(bundle), workforce=workforce, **SIZES).new == 0
    assert len(read_gallery(tmp_path / "out")) == 61
