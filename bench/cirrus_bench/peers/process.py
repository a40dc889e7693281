"""Run a peer as a process that loads its model once and embeds the same folder on every request.

The driver's arguments are the folder of photos, the folder of weights and the file for its embeddings. It prints one
line of JSON when it is ready. For every line that it reads, it embeds the folder and prints its peak memory as JSON.
"""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_bench.errors import PeerError
from cirrus_bench.peers.install import PEERS, Peer, install
from cirrus_bench.peers.weights import write_weights
from cirrus_export.recipes.recipe import Recipe

_ANSWER = "cirrus:"
log = logging.getLogger(__name__)


class PeerProcess:
    """A running peer, for one thread. Leaving the `with` block stops it."""

    def __init__(self, peer: Peer, python: Path, photos: Path, weights: Path) -> None:
        """Start the driver and wait until its model is loaded. Raises PeerError with the last line of its output."""
        self.name = peer.name
        self.peak_bytes = 0
        self._scratch = tempfile.TemporaryDirectory(prefix="cirrus-peer-")
        self._embeddings = Path(self._scratch.name) / "embeddings.npy"
        self._log = (Path(self._scratch.name) / "stderr.log").open("w+b")
        paths = (python, peer.driver, photos, weights, self._embeddings)
        self._process = subprocess.Popen(
            [str(path.absolute()) for path in paths],
            # Some tools write files into the folder that they are started in.
            cwd=self._scratch.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.title = f"{peer.name} {self._answer()['version']}"
        except PeerError:
            self.close()
            raise

    def run(self) -> None:
        """Embed the folder once. Raises PeerError if the driver stops."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        self.peak_bytes = max(self.peak_bytes, int(self._answer()["peak_bytes"]))

    def embeddings(self) -> NDArray[np.float32]:
        """Return the embeddings of the last run, float32 [N, D], ordered by file name."""
        rows: NDArray[np.float32] = np.load(self._embeddings).astype(np.float32)
        return rows

    def close(self) -> None:
        """Stop the driver."""
        self._process.kill()
        self._process.wait()
        self._log.close()
        self._scratch.cleanup()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        """Return the driver's next line of JSON, and skip what the tool itself prints."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                return answer
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
        raise PeerError(f"{self.name} does not run here; the last it said: {said[-1]}")


def start_peers(
    folder: Path, recipe: Recipe, photos: Sequence[Path], peers: Sequence[Peer] = PEERS
) -> tuple[list[PeerProcess], dict[str, str]]:
    """Install and start every peer; return those that run, and by name the reasons why the others do not.

    folder: where environments and weights are kept. recipe: every peer loads the weights of its backbone.
    """
    weights = write_weights(recipe, folder / "weights")
    running: list[PeerProcess] = []
    missing: dict[str, str] = {}
    for peer in peers:
        log.info("installing and starting %s", peer.name)
        try:
            running.append(PeerProcess(peer, install(peer, folder), photos[0].parent, weights))
        except PeerError as error:
            missing[peer.name] = str(error)
    return running, missing
