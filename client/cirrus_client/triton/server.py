"""The real `tritonserver` of the nvidia-pytriton wheel, started on this machine without a container."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from cirrus_client.errors import MissingPackage, ServerError, ServerUnavailable
from cirrus_client.hosts import is_loopback
from cirrus_client.names import Transport
from cirrus_client.plans import version_numbers
from cirrus_client.telemetry import switch_off
from cirrus_client.triton import guard, launch
from cirrus_client.triton.channel import is_ready
from cirrus_client.triton.listening import ipv4_address, listening
from cirrus_client.triton.repository import assemble
from cirrus_client.triton.restricted import admin_headers, restrictions
from cirrus_client.triton.scratch import Scratch

_CACHE_BYTES = 256 * 2**20
_EXIT_TIMEOUT_S = 5  # a stop waits this long for running requests, and for idle HTTP connections as well
_LOG_LINES = 25
_STOPPED = b"stopped"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_FIRST_UNSUPPORTED_NUMPY = (2,)
_LOOPBACK = "127.0.0.1"
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class TritonServer:
    """Serves a model repository from `start` to `stop`, or for the length of a `with` block.

    It runs the installed code, not the repository's, and keeps Triton's administration to the holder of a secret that
    is made at the start. The server dies with the thread that started it, and so with this process, however that ends;
    nothing that it made is left behind.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = _LOOPBACK,
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        cache_bytes: int = _CACHE_BYTES,
        start_timeout_s: float = 300.0,
        trust_network: bool = False,
        metrics_config: Sequence[str] = (),
        trace_config: Sequence[str] = (),
    ) -> None:
        """Name the repository and the ports. Nothing is started yet.

        host: the address to listen on. Metrics are on loopback whatever it is. cache_bytes: memory for answers to
        repeated requests, taken at the start; 0 keeps none. trust_network: allow a host beyond loopback. The
        pip-installed server has published holes that whoever reaches its ports can use. metrics_config, trace_config:
        values of Triton's options of these names, like "histogram_latencies=true" and "mode=opentelemetry".
        """
        self.repository = repository
        self.host = host
        self.http_port = http_port
        self.grpc_port = grpc_port
        self.metrics_port = metrics_port
        self._cache_bytes = cache_bytes
        self._start_timeout_s = start_timeout_s
        self._trust_network = trust_network
        self._metrics_config = tuple(metrics_config)
        self._trace_config = tuple(trace_config)
        self._secret = secrets.token_urlsafe(32)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._scratch: Scratch | None = None

    @property
    def grpc_url(self) -> str:
        """host:port for gRPC clients."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """host:port for HTTP clients."""
        return f"{self.host}:{self.http_port}"

    @cached_property
    def _address(self) -> str:
        return ipv4_address(self.host)

    @property
    def log_path(self) -> Path:
        """The server's log; it lives as long as the server."""
        assert self._scratch is not None, "the server was not started"
        return self._scratch.folder / "tritonserver.log"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server was started, and neither ended by itself nor was stopped."""
        return self._process is not None and self._process.poll() is None

    def admin_headers(self, transport: Transport) -> dict[str, str]:
        """Return the headers that open Triton's administrative endpoints, like its statistics, to a request."""
        return admin_headers(self._secret, transport)

    def start(self) -> None:
        """Start the server and wait until every model is ready.

        Raises BundleError if there is no repository, or not as it was written; ServerError if a port is taken, the host
        has no IPv4 address, or is not loopback without `trust_network`; what `find_server` raises; and
        ServerUnavailable, with the end of the server's log, if the server does not become ready.
        """
        if not (is_loopback(self.host) or self._trust_network):
            raise ServerError(
                f"can't listen on {self.host}: the pip-installed Triton is for one machine that you trust, since who "
                "reaches its ports can take it over (CVE-2025-23319); serve a network from NVIDIA's container, see "
                "docs/deploy-on-triton.md, or say --trust-network"
            )
        with contextlib.ExitStack() as held:  # all at a time, since equal ports are one too many
            for port in (self.http_port, self.grpc_port):
                held.enter_context(listening(self._address, port))
            held.enter_context(listening(_LOOPBACK, self.metrics_port))
        installed = find_server()
        try:
            self._scratch = Scratch()
            self._launch(installed, self._scratch)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and everything it started. Does nothing if it is not running."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=4 * _EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            _kill_group(self._process.pid)
            self._process = None
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None
        if self._guard is not None:
            self._guard.communicate(_STOPPED)
            self._guard = None

    def wait(self) -> None:
        """Block until the server ends by itself, which is an error, or a KeyboardInterrupt ends the wait."""
        assert self._process is not None, "the server was not started"
        try:
            code = self._process.wait()
        except KeyboardInterrupt:
            return
        raise ServerUnavailable(f"tritonserver ended with code {code}; its log says:\n{self._complaints()}")

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self, installed: Path, scratch: Scratch) -> None:
        """Start the server, and the guard that ends it if this process is killed."""
        models = scratch.folder / "models"
        models.mkdir()
        assemble(self.repository, models)
        command = self._command(installed, _link_backends(installed, scratch.folder), models, scratch)
        with self.log_path.open("wb") as log, _signals_held():
            self._process = subprocess.Popen(
                [sys.executable, "-I", launch.__file__, str(os.getpid()), *command],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(self._process.pid), str(scratch.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(scratch.lock,),
                start_new_session=True,
            )

    def _command(self, installed: Path, backends: Path, models: Path, scratch: Scratch) -> list[str]:
        return [
            str(installed / "bin" / "tritonserver"),
            f"--model-repository={models}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={scratch.shared_memory_prefix}",
            "--disable-auto-complete-config",
            f"--cache-directory={installed / 'caches'}",
            *([f"--cache-config=local,size={self._cache_bytes}"] if self._cache_bytes else []),
            f"--http-address={self._address}",
            f"--http-port={self.http_port}",
            f"--grpc-address={self._address}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={_LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            *(f"--metrics-config={setting}" for setting in self._metrics_config),
            *(f"--trace-config={setting}" for setting in self._trace_config),
            *restrictions(self._secret),
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerUnavailable(f"tritonserver ended while starting; its log says:\n{self._complaints()}")
            if is_ready(self.grpc_url):
                return
            time.sleep(0.1)
        raise ServerUnavailable(
            f"tritonserver was not ready after {self._start_timeout_s:.0f} s; its log says:\n{self._complaints()}"
        )

    def _complaints(self) -> str:
        """The errors in the log, or its end where there are none."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        errors = [line for line in lines if re.match(r"E\d{4} |error:", line)]
        return "\n".join((errors or lines)[-_LOG_LINES:])


def free_ports(count: int) -> list[int]:
    """Return ports that are free on loopback now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(held.getsockname()[1]) for held in sockets]
    for held in sockets:
        held.close()
    return ports


def find_server() -> Path:
    """Return the `tritonserver` folder of the nvidia-pytriton wheel.

    Raises MissingPackage if the wheel is not installed, and ServerError if it can't run models on this Python or NumPy.
    """
    spec = find_spec("pytriton")  # importing the package would start its own machinery
    if spec is None or spec.origin is None:
        raise MissingPackage(
            "`cirrus serve` needs nvidia-pytriton: on Python 3.11 or 3.12, pip install 'cirrus-cir[serve]'",
            package="pytriton",
            requirement="cirrus-cir[serve]",
        )
    installed = Path(spec.origin).parent / "tritonserver"
    if not _stub(installed).is_file():
        raise ServerError(f"nvidia-pytriton has no Python backend for Python {_PYTHON}; use Python 3.11 or 3.12")
    if version_numbers(version("numpy")) >= _FIRST_UNSUPPORTED_NUMPY:
        raise ServerError(
            f"nvidia-pytriton's Python backend needs NumPy 1, and NumPy {version('numpy')} is installed: "
            "pip install 'cirrus-cir[serve]'"
        )
    return installed


def _stub(installed: Path) -> Path:
    return installed / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"


def _link_backends(installed: Path, scratch: Path) -> Path:
    """Make a backend folder of links: a copied stub would lose the libraries that it finds relative to itself."""
    backend = scratch / "backends" / "python"
    backend.mkdir(parents=True)
    for file in [*(installed / "backends" / "python").glob("*.*"), _stub(installed)]:
        (backend / file.name).symlink_to(file)
    return backend.parent


def _environment() -> dict[str, str]:
    """The models run in isolated interpreters, which have the packages of the first `python3` on the path: this one."""
    switch_off()
    commands = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    libraries = [sysconfig.get_config_var("LIBDIR") or "", os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {
        "PATH": os.pathsep.join(path for path in commands if path),
        "LD_LIBRARY_PATH": os.pathsep.join(path for path in libraries if path),
    }


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let signals wait that would end this process between the start of a child and the note of it."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
