"""Where the time of one request goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from cirrus_client.service.models import Timings


class Stage(StrEnum):
    """A stage of a search; see `Timings`."""

    DECODE = "decode"
    QUEUE = "queue"
    ENCODE = "encode"
    SEARCH = "search"
    RERANK = "rerank"
    METADATA = "metadata"


class Stopwatch:
    """Adds up the seconds that a request spends in each stage. It belongs to one request."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: dict[Stage, float] = dict.fromkeys(Stage, 0.0)

    def add(self, stage: Stage, seconds: float) -> None:
        """Add time to a stage."""
        self.seconds[stage] += seconds

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Add the time of a block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    @property
    def total_s(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._started

    def timings(self) -> Timings:
        """Return the stages in ms."""
        stages = {f"{stage}_ms": round(1e3 * seconds, 3) for stage, seconds in self.seconds.items()}
        return Timings(**stages, total_ms=round(1e3 * self.total_s, 3))
