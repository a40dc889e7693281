"""Queries through a real Triton server compared with queries in process: latency by concurrency, and bulk embedding."""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tritonclient.grpc as grpcclient

from cirrus_bench.errors import PeerError
from cirrus_bench.latency import Latency, measure_latency
from cirrus_bench.measure import this_machine, time_interleaved
from cirrus_bench.perf_analyzer import PerfAnalyzer
from cirrus_bench.report import Report, plot
from cirrus_bench.subjects import bench_photos
from cirrus_client.bundle import Bundle
from cirrus_client.encoders import Encoder, LocalEncoder
from cirrus_client.gallery import embed_gallery
from cirrus_client.names import Transport
from cirrus_client.records import Record
from cirrus_client.triton.encoder import TritonEncoder
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_demo.probe import rendered_probe

_CONCURRENCY = (1, 2, 4, 8, 16)
_QUERIES = 300
_PHOTOS, _PHOTO_PX, _ROUNDS = 256, 512, 3
_COLOURS = {"p50": "#1f6feb", "p95": "#e09f3e", "p99": "#d1495b"}
log = logging.getLogger(__name__)


class Stage(Record):
    """Mean milliseconds per request of one served model, from Triton's statistics.

    queue_ms: waiting for a free instance or for a batch to fill. mean_batch: requests per execution.
    """

    model: str
    queue_ms: float
    compute_ms: float
    mean_batch: float


class BulkRates(Record):
    """Images per second of `embed_gallery` from JPEG photos, in process and through the server."""

    in_process: float
    served: float


class QueryReport(Report):
    """One bundle, served and in process.

    in_process: latency of the same queries by `LocalEncoder`. served: by Cirrus's client through Triton. stages: per
    concurrency, the models of the server. analyzed: the latency that perf_analyzer measures. analyzer: its version, or
    why it is missing.
    """

    file_name: ClassVar[str] = "queries"

    bundle: str
    queries: int
    in_process: Latency
    served: tuple[Latency, ...]
    stages: dict[int, tuple[Stage, ...]]
    analyzed: tuple[Latency, ...]
    analyzer: str
    bulk: BulkRates

    @property
    def overhead_ms(self) -> float:
        """Milliseconds that Triton adds to the median latency of one query at a time."""
        return self.served[0].p50_ms - self.in_process.p50_ms

    def markdown(self) -> str:
        """Render the report as Markdown."""
        share = self.overhead_ms / self.in_process.p50_ms
        lines = [
            f"# Queries: {self.bundle}",
            "",
            f"{self.queries} single queries of an image and a text, over gRPC on the same machine, response cache off. "
            f"Triton adds **{self.overhead_ms:.1f} ms** ({share:.0%}) to the median of one query at a time.",
            "",
            "| measured | in flight | p50, ms | p95, ms | p99, ms | queries/s |",
            "|---|--:|--:|--:|--:|--:|",
            _row("in process", self.in_process),
            *(_row("Triton, by Cirrus's client", latency) for latency in self.served),
            *(_row(f"Triton, by {self.analyzer}", latency) for latency in self.analyzed),
        ]
        if not self.analyzed:
            lines += ["", f"Not measured: {self.analyzer}"]
        for concurrency, stages in self.stages.items():
            lines += [
                "",
                f"## Where the time goes, {concurrency} in flight",
                "",
                "| model | queue, ms | compute, ms | requests per batch |",
                "|---|--:|--:|--:|",
                *(f"| {s.model} | {s.queue_ms:.2f} | {s.compute_ms:.2f} | {s.mean_batch:.1f} |" for s in stages),
            ]
        lines += [
            "",
            "## Bulk embedding",
            "",
            f"{_PHOTOS} JPEG photos of {_PHOTO_PX} px: {self.bulk.in_process:,.1f} images/s in process, "
            f"{self.bulk.served:,.1f} through the server ({self.bulk.served / self.bulk.in_process:.0%}).",
        ]
        return "\n".join([*lines, "", str(self.machine)]) + "\n"

    def write(self, out: Path) -> list[Path]:
        """Write `queries.json`, `queries.md` and `queries.png`, and return their paths."""
        return [*super().write(out), _plot(self, out / f"{self.file_name}.png")]


def measure_queries(bundle: Bundle, work: Path) -> QueryReport:
    """Serve a bundle with the pip-installed Triton and query it, each time with another query.

    The server's response cache is off. work: where photos and perf_analyzer are kept for the next run.
    """
    queries = rendered_probe(queries=_QUERIES, gallery=2 * _QUERIES).queries
    photos = bench_photos(work, count=_PHOTOS, size_px=_PHOTO_PX)[0].parent
    local = LocalEncoder(bundle)
    log.info("measuring %d queries in process", len(queries))
    in_process = measure_latency(local, queries, 1)
    served: list[Latency] = []
    stages: dict[int, tuple[Stage, ...]] = {}
    http, grpc, metrics = free_ports(3)
    repository = bundle.root / "triton" / "python"
    with TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics, cache_bytes=0) as server:
        encoder = TritonEncoder(server.grpc_url)
        for concurrency in _CONCURRENCY:
            log.info("measuring %d queries through Triton, %d in flight", len(queries), concurrency)
            before = _statistics(server)
            served.append(measure_latency(encoder, queries, concurrency))
            if concurrency in (_CONCURRENCY[0], _CONCURRENCY[-1]):
                stages[concurrency] = _stages(before, _statistics(server))
        analyzed: list[Latency] = []
        try:
            analyzer = PerfAnalyzer(work / "peers")
            analyzed += [analyzer.measure(server, queries, concurrency) for concurrency in _CONCURRENCY]
            version = f"perf_analyzer {analyzer.version}"
        except PeerError as error:
            version = str(error)
        encoders: dict[str, Encoder] = {"in_process": local, "served": encoder}
        timings = time_interleaved(
            {name: partial(_embed, photos, chosen) for name, chosen in encoders.items()}, _ROUNDS
        )
    return QueryReport(
        bundle=f"{bundle.spec.recipe} on {bundle.spec.backbone}, {bundle.spec.precision}",
        queries=len(queries),
        in_process=in_process,
        served=tuple(served),
        stages=stages,
        analyzed=tuple(analyzed),
        analyzer=version,
        bulk=BulkRates(**{name: _PHOTOS / timing.median for name, timing in timings.items()}),
        machine=this_machine(),
    )


def _row(way: str, latency: Latency) -> str:
    return (
        f"| {way} | {latency.concurrency} | {latency.p50_ms:.1f} | {latency.p95_ms:.1f} | {latency.p99_ms:.1f} "
        f"| {latency.queries_per_s:.1f} |"
    )


def _embed(photos: Path, encoder: Encoder) -> None:
    with tempfile.TemporaryDirectory() as out:
        embed_gallery(photos, Path(out), encoder, show_progress=False)


def _statistics(server: TritonServer) -> dict[str, Any]:
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        answer = client.get_inference_statistics(as_json=True, headers=server.admin_headers(Transport.GRPC))
    return {model["name"]: model for model in answer["model_stats"]}


def _stages(before: dict[str, Any], after: dict[str, Any]) -> tuple[Stage, ...]:
    stages = []
    for name, now in after.items():
        then = before[name]
        requests = _count(now, then, "inference_count")
        executions = _count(now, then, "execution_count")
        if requests and executions:
            work_ns = sum(_ns(now, then, part) for part in ("compute_input", "compute_infer", "compute_output"))
            stages.append(
                Stage(
                    model=name,
                    queue_ms=_ns(now, then, "queue") / requests / 1e6,
                    compute_ms=work_ns / requests / 1e6,
                    mean_batch=requests / executions,
                )
            )
    return tuple(sorted(stages, key=lambda stage: -stage.compute_ms))


def _count(now: dict[str, Any], then: dict[str, Any], field: str) -> int:
    return int(now.get(field, 0)) - int(then.get(field, 0))


def _ns(now: dict[str, Any], then: dict[str, Any], part: str) -> int:
    def total(model: dict[str, Any]) -> int:
        return int(model["inference_stats"].get(part, {}).get("ns", 0))

    return total(now) - total(then)


def _plot(report: QueryReport, file: Path) -> Path:
    at = [latency.concurrency for latency in report.served]
    with plot(file, f"Query latency through Triton: {report.bundle}", (8, 4)) as axes:
        for name, colour in _COLOURS.items():
            values = [getattr(latency, f"{name}_ms") for latency in report.served]
            axes.plot(at, values, marker="o", color=colour, label=name)
        axes.axhline(report.in_process.p50_ms, color="#9aa4b2", linestyle="--", label="in process, p50")
        axes.set_xscale("log", base=2)
        axes.set_xticks(at, [str(value) for value in at])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("queries in flight")
        axes.set_ylabel("milliseconds")
        axes.legend(frameon=False)
    return file
