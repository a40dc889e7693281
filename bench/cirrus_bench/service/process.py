"""Run a server in a process of its own for as long as it is measured."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cirrus_bench.errors import PeerError

_PATIENCE_S = 240


@contextmanager
def serving(command: Sequence[str], ready: str, *, log: Path, folder: Path | None = None) -> Iterator[None]:
    """Start a server, enter the block once the address `ready` answers, and stop the server at its end.

    log: the file for what it says. folder: where it is started; None is the current one. Raises PeerError with the
    last line of the log if it does not start.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait(ready, process, log)
        yield
    finally:
        process.terminate()
        process.wait(timeout=_PATIENCE_S)


def _wait(ready: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(ready, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
    raise PeerError(f"the server does not start; the last it said: {said[-1]}")
