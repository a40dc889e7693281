"""A service in a process of its own, as `cirrus serve` starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from cirrus_client.triton.server import free_ports
from tests.test_command_line import CIRRUS

PATIENCE_S = 90


@dataclass(frozen=True)
class Live:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, **options: object) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, **options)


@contextmanager
def live(folder: Path, *arguments: object, port: int | None = None, **environment: str) -> Iterator[Live]:
    """Start `cirrus serve` and wait until it answers; stop it at the end, if it has not ended."""
    port = port or free_ports(1)[0]
    log = folder / "serve.log"
    with log.open("wb") as file:
        started = subprocess.Popen(
            [*CIRRUS, "serve", *map(str, arguments), "--port", str(port)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )
    service = Live(f"http://127.0.0.1:{port}", started, log)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(service.url):
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield service
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(timeout=PATIENCE_S)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False
