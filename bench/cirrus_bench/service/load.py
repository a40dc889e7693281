"""Ask a service over HTTP: a number of requests in flight, or at a steady rate."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import numpy as np

from cirrus_bench.latency import Latency
from cirrus_client.records import Record

_SENDERS = 64
_HEADERS = {"Content-Type": "application/json"}
Ask = Callable[[bytes], tuple[float, bool]]
"""Sends a body and returns the seconds that the answer took, and whether it is good. Threads may share it."""


class Endurance(Record):
    """Requests at a steady rate. errors: answers that were no 200."""

    seconds: float
    requests_per_s: float
    requests: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Caller:
    """Posts JSON to a path of a service. Each thread keeps its connection; threads may share a caller."""

    def __init__(self, url: str, path: str = "/v1/search") -> None:
        """Keep the address. path: what is asked."""
        self._where = urlsplit(url)
        self._path = path
        self._local = threading.local()

    def __call__(self, body: bytes) -> tuple[float, bool]:
        """Return the seconds that an answer took, and whether it is a 200."""
        started = time.perf_counter()
        good = self.post(body) is not None
        return time.perf_counter() - started, good

    def post(self, body: bytes) -> bytes | None:
        """Return the answer to a body, or None if it is no 200 or does not come.

        A kept connection that the service closed meanwhile is opened again.
        """
        try:
            kept = getattr(self._local, "connection", None)
            if kept is not None:
                with suppress(ConnectionError):
                    return self._answer(kept, body)
            self._local.connection = http.client.HTTPConnection(
                str(self._where.hostname), self._where.port, timeout=120
            )
            return self._answer(self._local.connection, body)
        except (OSError, http.client.HTTPException):
            self._local.connection = None
            return None

    def _answer(self, connection: http.client.HTTPConnection, body: bytes) -> bytes | None:
        connection.request("POST", self._path, body, _HEADERS)
        answer = connection.getresponse()
        content = answer.read()
        return content if answer.status == http.HTTPStatus.OK else None


def in_flight(ask: Ask, bodies: Sequence[bytes], concurrency: int, *, warm_up: bool = True) -> tuple[Latency, int]:
    """Send every body once, `concurrency` at a time, after a few to warm up. Return the latency and the errors."""
    with ThreadPoolExecutor(concurrency) as threads:
        if warm_up:
            list(threads.map(ask, bodies[:concurrency]))
        started = time.perf_counter()
        answers = list(threads.map(ask, bodies))
        whole = time.perf_counter() - started
    latency = latency_of([seconds for seconds, _ in answers], concurrency, whole)
    return latency, sum(not good for _, good in answers)


def at_a_rate(ask: Ask, bodies: Sequence[bytes], *, requests_per_s: float, seconds: float) -> Endurance:
    """Send bodies at a steady rate, whatever the answers take. Latency counts from when a request was due."""
    requests = int(seconds * requests_per_s)
    started = time.perf_counter()

    def send(number: int) -> tuple[float, bool]:
        due = started + number / requests_per_s
        time.sleep(max(0.0, due - time.perf_counter()))
        _, good = ask(bodies[number % len(bodies)])
        return time.perf_counter() - due, good

    with ThreadPoolExecutor(_SENDERS) as threads:
        answers = list(threads.map(send, range(requests)))
    p50, p95, p99 = percentiles_ms([taken for taken, _ in answers])
    return Endurance(
        seconds=time.perf_counter() - started,
        requests_per_s=requests_per_s,
        requests=requests,
        errors=sum(not good for _, good in answers),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )


def latency_of(seconds: Sequence[float], concurrency: int, whole: float) -> Latency:
    """Return the latency of queries that took so many seconds each, `whole` seconds in all."""
    p50, p95, p99 = percentiles_ms(seconds)
    return Latency(concurrency=concurrency, p50_ms=p50, p95_ms=p95, p99_ms=p99, queries_per_s=len(seconds) / whole)


def percentiles_ms(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the 50th, 95th and 99th percentile in ms."""
    p50, p95, p99 = (float(value) for value in 1e3 * np.percentile(seconds, [50, 95, 99]))
    return p50, p95, p99
