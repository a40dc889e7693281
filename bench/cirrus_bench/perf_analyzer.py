"""Measure a served bundle with perf_analyzer, Triton's own load generator, to check Cirrus's own measurement.

The package named perf-analyzer on the registry is empty. The program came with the wheels of tritonclient until 2.60;
2.51 is the last that runs on glibc 2.36. A perf_analyzer on the PATH, as in NVIDIA's SDK container, is preferred.
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
from cirrus_client.names import Transport
from cirrus_client.triton.server import TritonServer
from cirrus_export.gate.probe import ProbeQuery

_NAME = "perf_analyzer"
_REQUIREMENTS = ("--no-deps", "tritonclient==2.51.0", "nvidia-cuda-runtime-cu12")


class PerfAnalyzer:
    """perf_analyzer, found on the PATH or installed into an environment of its own."""

    def __init__(self, folder: Path) -> None:
        """Find or install the program, and read its version.

        folder: where its environment is created on the first call. Raises PeerError if it does not install or start.
        """
        self._environment = dict(os.environ)
        found = shutil.which(_NAME)
        if found is None:
            root = environment(folder / _NAME, [_REQUIREMENTS]).parents[1]
            libraries = next(root.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"))
            self._environment["LD_LIBRARY_PATH"] = f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"
            found = str(root / "bin" / _NAME)
        self._program = found
        self.version = self._run(["--version"]).split("Version", 1)[-1].split("(")[0].strip()

    def measure(self, server: TritonServer, queries: Sequence[ProbeQuery], concurrency: int) -> Latency:
        """Send each query once to the server's gRPC endpoint, `concurrency` at a time, and return the latency.

        The program reads Triton's statistics, so it gets the secret for them. Raises PeerError if the program fails.
        """
        with tempfile.TemporaryDirectory() as scratch:
            given, answer = Path(scratch) / "queries.json", Path(scratch) / "latency.csv"
            given.write_text(json.dumps({"data": [_tensors(query) for query in queries]}))
            headers = server.admin_headers(Transport.GRPC).items()
            asked = ["-m", "encode_query", "-u", server.grpc_url, "-i", "grpc", "--input-data", str(given)]
            asked += [part for name, value in headers for part in ("-H", f"{name}:{value}")]
            load = ["--concurrency-range", str(concurrency), "--request-count", str(len(queries))]
            self._run([*asked, *load, "-f", str(answer)])
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
    """Return the query as perf_analyzer reads it; in base64 a string is preceded by its length, as on the wire."""
    wire = len(query.image).to_bytes(4, "little") + query.image
    return {
        "image": {"b64": base64.b64encode(wire).decode(), "shape": [1]},
        "text": {"content": [query.text], "shape": [1]},
    }
