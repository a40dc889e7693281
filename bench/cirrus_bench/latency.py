"""Measure the latency of single queries, with a number of them in flight at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cirrus_client.encoders import Encoder
from cirrus_client.records import Record
from cirrus_export.gate.probe import ProbeQuery


class Latency(Record):
    """Latency of single queries of an image and a text.

    concurrency: queries in flight. p50_ms, p95_ms, p99_ms: percentiles in milliseconds. queries_per_s: throughput.
    """

    concurrency: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queries_per_s: float


def measure_latency(encoder: Encoder, queries: Sequence[ProbeQuery], concurrency: int) -> Latency:
    """Encode every query once, `concurrency` at a time, after a few to warm up, and return the latency."""

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
