"""Triton's own load generator, perf_analyzer, against a served bundle: the same figures from another hand than ours.

The registry's package of that name is empty; the program came with the wheels of tritonclient until 2.60. 2.51 is the
last that runs on glibc 2.36. One on the PATH, as in NVIDIA's SDK container, is taken before that.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/perf_analyzer/docs/cli.html
"""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cirrus_bench.errors import PeerError
from cirrus_bench.latency import Latency
from cirrus_bench.peers.install import environment
from cirrus_export.gate.probe import ProbeQuery

_NAME = "perf_analyzer"
_REQUIREMENTS = ("--no-deps", "tritonclient==2.51.0", "nvidia-cuda-runtime-cu12")


class PerfAnalyzer:
    """The program, found or installed."""

    def __init__(self, folder: Path) -> None:
        """folder: where its environment is made on the first call. Raises PeerError if it does not install or start."""
        self._environment = dict(os.environ)
        found = shutil.which(_NAME)
        if found is None:
            root = environment(folder / _NAME, [_REQUIREMENTS]).parents[1]
            libraries = next(root.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"))
            self._environment["LD_LIBRARY_PATH"] = f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"
            found = str(root / "bin" / _NAME)
        self._program = found
        self.version = self._run(["--version"]).split("Version", 1)[-1].split("(")[0].strip()

    def measure(self, url: str, queries: Sequence[ProbeQuery], concurrency: int) -> Latency:
        """Ask each query once of the server at `url` (host:port, gRPC), `concurrency` at a time. Raises PeerError."""
        with tempfile.TemporaryDirectory() as scratch:
            given, answer = Path(scratch) / "queries.json", Path(scratch) / "latency.csv"
            given.write_text(json.dumps({"data": [_tensors(query) for query in queries]}))
            server = ["-m", "encode_query", "-u", url, "-i", "grpc", "--input-data", str(given)]
            load = ["--concurrency-range", str(concurrency), "--request-count", str(len(queries))]
            self._run([*server, *load, "-f", str(answer)])
            row = next(csv.DictReader(answer.read_text().splitlines()))
        p50, p95, p99 = (float(row[f"p{share} latency"]) / 1e3 for share in (50, 95, 99))
        rate = float(row["Inferences/Second"])
        return Latency(concurrency=concurrency, p50_ms=p50, p95_ms=p95, p99_ms=p99, queries_per_s=rate)

    def _run(self, arguments: list[str]) -> str:
        done = subprocess.run(
            [self._program, *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
            raise PeerError(
                f"{_NAME} does not run here: {said[-1]}; on Debian and Ubuntu it needs `apt-get install libb64-0d`"
            )
        return done.stdout + done.stderr


def _tensors(query: ProbeQuery) -> dict[str, object]:
    """The query's inputs. Base64 stands for a tensor as it is on the wire, where a string follows its length."""
    wire = len(query.image).to_bytes(4, "little") + query.image
    return {
        "image": {"b64": base64.b64encode(wire).decode(), "shape": [1]},
        "text": {"content": [query.text], "shape": [1]},
    }
