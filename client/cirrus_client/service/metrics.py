"""What Prometheus reads: requests, latency by step, queues, batches, errors by kind, canaries, and indexes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cirrus_client import __version__
from cirrus_client.encoders.remembering import Kept
from cirrus_client.errors import CirrusError, InvalidInput
from cirrus_client.service.collection import Version
from cirrus_client.service.stopwatch import Stage, Stopwatch

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_STEPS = {stage: "index" if stage is Stage.SEARCH else stage.value for stage in Stage}


class Metrics:
    """The metrics of one service. Threads may share it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cirrus_http_requests", "HTTP requests", ("method", "route", "status"), registry=self._registry
        )
        self._searches = Counter(
            "cirrus_search_requests", "Searches, by 'ok' or the error", ("outcome",), registry=self._registry
        )
        self._durations = Histogram(
            "cirrus_search_duration_seconds", "Searches, by step", ("step",), buckets=_SECONDS, registry=self._registry
        )
        self._graphs = Histogram(
            "cirrus_graph_duration_seconds",
            "Runs of graphs in this process",
            ("graph",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._rejected = Counter(
            "cirrus_rejected_inputs", "Images, texts and queries, by error", ("kind",), registry=self._registry
        )
        self._known = Counter(
            "cirrus_known_inputs",
            "Whole queries, images and texts that were looked for among those already encoded",
            ("kind", "known"),
            registry=self._registry,
        )
        self._batches = Histogram(
            "cirrus_batch_size", "Queries per run of the encoder", buckets=_BATCHES, registry=self._registry
        )
        labels = ("collection", "space")
        self._waiting = Gauge("cirrus_waiting_queries", "Queries in the queue", labels, registry=self._registry)
        self._images = Gauge("cirrus_index_images", "Images in an index", labels, registry=self._registry)
        self._built = Gauge(
            "cirrus_index_built_timestamp_seconds", "When an index was built", labels, registry=self._registry
        )
        self._cosine = Gauge(
            "cirrus_canary_cosine", "Smallest cosine of the canary's stages", labels, registry=self._registry
        )
        self._passed = Gauge(
            "cirrus_canary_passed",
            "Whether the canaries of a collection, or the suggester's, passed: 0 is not ready",
            ("part",),
            registry=self._registry,
        )
        self._info = Gauge(
            "cirrus_info", "What is served", (*labels, "bundle", "precision", "version"), registry=self._registry
        )

    def request(self, method: str, route: str, status: int) -> None:
        """Count an HTTP request."""
        self._requests.labels(method, route, status).inc()

    def batch(self, size: int) -> None:
        """Count a run of the encoder."""
        self._batches.observe(size)

    def graph(self, name: str, seconds: float) -> None:
        """Count a run of a graph."""
        self._graphs.labels(name).observe(seconds)

    def looked_up(self, kept: Kept, known: bool) -> None:
        """Count a query, an image or a text, by whether it was encoded before."""
        self._known.labels(kept.value, "true" if known else "false").inc()

    def rejected(self, error: CirrusError) -> None:
        """Count an input that was refused."""
        if isinstance(error, InvalidInput):
            self._rejected.labels(type(error).__name__).inc()

    @contextmanager
    def search(self, watch: Stopwatch) -> Iterator[None]:
        """Count a search, by how it ends, with the time of its steps."""
        outcome = "defect"
        try:
            yield
            outcome = "ok"
            for stage, seconds in watch.seconds.items():
                self._durations.labels(_STEPS[stage]).observe(seconds)
            self._durations.labels("total").observe(watch.total_s)
        except CirrusError as error:
            outcome = type(error).__name__
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._searches.labels(outcome).inc()

    def text(
        self,
        versions: Sequence[tuple[str, Version]],
        counts: Sequence[int | None],
        cosines: Mapping[tuple[str, str], float],
        passed: Mapping[str, bool],
    ) -> bytes:
        """Return all metrics in Prometheus's form.

        versions: what is served now, by collection. counts: the number of images of each, or None. cosines,
        passed: see `Canaries`.
        """
        for gauge in (self._waiting, self._images, self._built, self._cosine, self._passed, self._info):
            gauge.clear()
        for part, has_passed in passed.items():
            self._passed.labels(part).set(has_passed)
        for (name, version), count in zip(versions, counts, strict=True):
            labels = (name, version.space[:16])
            self._waiting.labels(*labels).set(version.encoder.waiting())
            self._images.labels(*labels).set(math.nan if count is None else count)
            self._built.labels(*labels).set(version.built)
            if (name, version.space) in cosines:
                self._cosine.labels(*labels).set(cosines[name, version.space])
            self._info.labels(*labels, version.spec.name, version.spec.precision, __version__).set(1)
        return generate_latest(self._registry)
