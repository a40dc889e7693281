"""A peer as a process that keeps its model and embeds the same folder as often as it is asked.

The driver gets the folder of photos, the folder of weights and a file for its embeddings; it prints a line of JSON when
it is ready, and one for every line that it reads: its peak memory after a whole run.
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
from cirrus_export.recipes.transagg_union import TransAggUnion

_ANSWER = "cirrus:"
log = logging.getLogger(__name__)


class PeerProcess:
    """A running peer. Leave its `with` block to stop it."""

    def __init__(self, peer: Peer, python: Path, photos: Path, weights: Path) -> None:
        """Start the driver and wait until its model is loaded. Raises PeerError with what it said last."""
        self.name = peer.name
        self.peak_bytes = 0
        self._scratch = tempfile.TemporaryDirectory(prefix="cirrus-peer-")
        self._embeddings = Path(self._scratch.name) / "embeddings.npy"
        self._log = (Path(self._scratch.name) / "stderr.log").open("w+b")
        paths = (python, peer.driver, photos, weights, self._embeddings)
        self._process = subprocess.Popen(
            [str(path.absolute()) for path in paths],
            # Some tools write beside where they are started.
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
        """Embed the folder once more. Raises PeerError if the driver dies."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        self.peak_bytes = max(self.peak_bytes, int(self._answer()["peak_bytes"]))

    def embeddings(self) -> NDArray[np.float32]:
        """Return the embeddings of the last run, float32 [N, D], rows in the order of the files' names."""
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
        """The driver's next answer; the tools themselves print to the same place."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                return answer
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
        raise PeerError(f"{self.name} does not run here; the last it said: {said[-1]}")


def start_peers(
    folder: Path, recipe: TransAggUnion, photos: Sequence[Path], peers: Sequence[Peer] = PEERS
) -> tuple[list[PeerProcess], dict[str, str]]:
    """Install and start every peer; return those that run, and the reasons of those that do not.

    folder: where environments and weights are kept. recipe: its backbone's weights are what every peer loads.
    """
    weights = write_weights(recipe, folder / "weights")
    running: list[PeerProcess] = []
    missing: dict[str, str] = {}
    for peer in peers:
        log.info("bench: starting %s", peer.name)
        try:
            running.append(PeerProcess(peer, install(peer, folder), photos[0].parent, weights))
        except PeerError as error:
            missing[peer.name] = str(error)
    return running, missing
