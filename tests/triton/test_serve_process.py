"""`cirrus serve` as a process: whatever ends it, and whenever, nothing runs on and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cirrus_client.errors import ServerUnavailable
from cirrus_client.triton import scratch as scratch_module
from cirrus_client.triton.encoder import TritonEncoder
from cirrus_client.triton.scratch import Scratch
from cirrus_client.triton.server import TritonServer, free_ports
from tests.conftest import jpeg
from tests.test_command_line import CIRRUS

pytestmark = pytest.mark.triton
_PATIENCE_S = 60


def wait_for(what: Callable[[], object], message: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)


def serve(bundle: Path, scratch: Path, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """Start `cirrus serve` with its scratch folder below `scratch`, and return it with the address for gRPC."""
    http, grpc, metrics = free_ports(3)
    ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
    started = subprocess.Popen(
        [*CIRRUS, "serve", str(bundle), *map(str, ports)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(scratch)} | environment,
    )
    return started, f"127.0.0.1:{grpc}"


def processes(scratch: Path) -> list[str]:
    """Return the command lines of the server, its guard and its Python models."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
        if str(scratch) in line:
            found.append(line)
    return found


def left(scratch: Path, names: set[str]) -> list[str]:
    memory = [path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(tuple(names))]
    return [*processes(scratch), *folders(scratch), *memory]


def folders(scratch: Path) -> list[str]:
    return [path.name for path in scratch.glob("cirrus-serve-*")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_a_signal_while_the_models_load_leaves_nothing(tiny_served, tmp_path, number: signal.Signals) -> None:
    serving, _ = serve(tiny_served.root, tmp_path)
    wait_for(lambda: any("python_backend_stub" in line for line in processes(tmp_path)), "no model began to load")
    names = set(folders(tmp_path))
    serving.send_signal(number)
    _, said = serving.communicate(timeout=_PATIENCE_S)
    if number == signal.SIGKILL:
        assert serving.returncode == -number
    else:
        assert serving.returncode == 128 + number
        cause = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
        assert said.splitlines()[-1] == f"cirrus: {cause}; the server was stopped"
        assert left(tmp_path, names) == []
    wait_for(lambda: not left(tmp_path, names), f"{left(tmp_path, names)} is left")


def test_a_bundle_is_served_from_any_folder_and_outlives_no_kill(tiny_served, tmp_path) -> None:
    """Triton starts its Python models through a shell, with a path that must have no space and be ASCII."""
    bundle = tmp_path / "Fünf Kleider"
    bundle.symlink_to(tiny_served.root)
    (tmp_path / "scratch").mkdir()
    serving, address = serve(bundle, tmp_path / "scratch", LC_ALL="C")
    assert serving.stdout is not None
    assert "is served" in serving.stdout.readline(), serving.communicate()[1]
    names = set(folders(tmp_path / "scratch"))
    with TritonEncoder(address) as encoder:
        assert encoder.encode_targets([jpeg()]).shape == (1, 64)
    serving.kill()
    serving.communicate(timeout=_PATIENCE_S)
    wait_for(lambda: not left(tmp_path / "scratch", names), "the killed server left something")


def test_a_scratch_folder_whose_processes_are_gone_is_removed_by_the_next_server(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    running = Scratch()
    dead = tmp_path / "cirrus-serve-dead"
    dead.mkdir()
    (dead / "tritonserver.log").touch()
    memory = Path("/dev/shm/cirrus-serve-dead-1")
    memory.touch()
    started = Scratch()
    assert set(tmp_path.iterdir()) == {running.folder, started.folder}
    assert not memory.exists()
    assert started.folder.stat().st_mode & 0o077 == 0
    for scratch in (running, started):
        scratch.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_hangs_while_it_starts_is_told_when_its_time_is_over(tmp_path, monkeypatch) -> None:
    """It takes requests, and answers none."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tested = threading.Event()

    class Hanging(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ServerReady(self, request: Any, context: Any) -> Any:
            tested.wait(_PATIENCE_S)
            return service_pb2.ServerReadyResponse()

    with ThreadPoolExecutor(2) as threads:
        hanging = grpc.server(threads)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Hanging(), hanging)
        port = hanging.add_insecure_port("127.0.0.1:0")
        hanging.start()
        server = TritonServer(tmp_path, grpc_port=port, start_timeout_s=1)
        server._scratch = Scratch()
        server.log_path.write_text("still loading")
        server._process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        try:
            with pytest.raises(ServerUnavailable, match="not ready after 1 s; its log says:\nstill loading"):
                threads.submit(server._wait_until_ready).result(timeout=20)
        finally:
            tested.set()
            hanging.stop(None).wait()
            server.stop()


def test_a_scratch_folder_that_another_server_takes_for_abandoned_is_made_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made, make = [], tempfile.mkdtemp

    def taken_once(**options: Any) -> str:
        made.append(make(**options))
        if len(made) == 1:
            scratch_module._remove_if_abandoned(Path(made[0]))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", taken_once)
    scratch = Scratch()
    assert [str(path) for path in tmp_path.iterdir()] == [str(scratch.folder)] == made[1:]
    scratch.remove()


def test_a_temporary_folder_with_a_space_is_not_used(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "my files"))
    scratch = Scratch()
    try:
        assert scratch.folder.parent == Path("/tmp")
    finally:
        scratch.remove()
