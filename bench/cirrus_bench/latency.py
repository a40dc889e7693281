"""Latency of single queries, asked by a number of clients at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cirrus_client.encoders import Encoder
from cirrus_client.records import Record
from cirrus_export.gate.probe import ProbeQuery


class Latency(Record):
    """Milliseconds of single queries, each with an image and a text, and how many were answered a second."""

    concurrency: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queries_per_s: float


def measure_latency(encoder: Encoder, queries: Sequence[ProbeQuery], concurrency: int) -> Latency:
    """Ask every query once, `concurrency` at a time, after a few to warm up."""

    def ask(query: ProbeQuery) -> float:
        start = time.perf_counter()
        encoder.encode_queries([query.image], [query.text])
        return time.perf_counter() - start

    for query in queries[: 2 * concurrency]:
        ask(query)
    with ThreadPoolExecutor(concurrency) as pool:
        start = time.perf_counter()
        seconds = list(pool.map(ask, queries))
        whole = time.perf_counter() - start
    p50, p95, p99 = (float(value) for value in 1e3 * np.percentile(seconds, [50, 95, 99]))
    return Latency(concurrency=concurrency, p50_ms=p50, p95_ms=p95, p99_ms=p99, queries_per_s=len(queries) / whole)
