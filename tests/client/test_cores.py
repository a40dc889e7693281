"""A process takes no more cores than its container's quota. A user's own limit stands for a quota here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cirrus_client.bundle import Precision
from cirrus_client.cores import keep_openmp_to_quota, quota, usable_cores
from cirrus_client.encoders import LocalEncoder
from cirrus_client.engines import candidates, engine_kind
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine
from cirrus_client.engines.openvino import OpenVinoEngine
from cirrus_client.gallery import FolderSource
from cirrus_client.gallery.stream import EmbedStream

LIMIT = "LOKY_MAX_CPU_COUNT"


@pytest.fixture
def one_core(monkeypatch) -> None:
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("this machine has one core, so no quota allows fewer")
    monkeypatch.setenv(LIMIT, "1")


def test_without_a_quota_runtimes_choose(monkeypatch) -> None:
    monkeypatch.delenv(LIMIT, raising=False)
    monkeypatch.setattr("loky.backend.context._cpu_count_cgroup", lambda cores: cores)
    assert quota() is None
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_a_containers_quota_is_read(monkeypatch) -> None:
    monkeypatch.setattr("loky.backend.context._cpu_count_cgroup", lambda cores: 1)
    assert usable_cores() == 1


@pytest.mark.parametrize("engine", candidates(Precision.FP32))
def test_an_engine_keeps_to_it(one_core, tiny_bundle, engine) -> None:
    loaded = engine_kind(engine).load_graph(tiny_bundle, "gallery", threads=None, bulk=False)
    if isinstance(loaded, OnnxRuntimeEngine):
        assert loaded._session.get_session_options().intra_op_num_threads == 1
    else:
        assert isinstance(loaded, OpenVinoEngine)
        with loaded._pool.take(1) as (request,):
            assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_images_are_decoded_on_as_many_threads(one_core, tiny_bundle, pictures) -> None:
    with EmbedStream(FolderSource(pictures), LocalEncoder(tiny_bundle)) as stream:
        assert stream._decoders._max_workers == 1


def test_faiss_in_a_command_keeps_to_it(one_core) -> None:
    script = (
        "from cirrus_client.cores import keep_openmp_to_quota; keep_openmp_to_quota()\n"
        "import faiss, threading\n"
        "threads = [faiss.omp_get_max_threads()]\n"
        "other = threading.Thread(target=lambda: threads.append(faiss.omp_get_max_threads()))\n"
        "other.start(); other.join(); print(threads)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[1, 1]"


def test_a_user_who_says_how_many_threads_is_heard(one_core, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    keep_openmp_to_quota()
    assert os.environ["OMP_NUM_THREADS"] == "2"
