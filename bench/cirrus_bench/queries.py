"""A real Triton against the bare engine: query latency by concurrency, where the time goes, and bulk embedding."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpcclient

from cirrus_bench.errors import PeerError
from cirrus_bench.latency import Latency, measure_latency
from cirrus_bench.measure import Machine, this_machine, time_interleaved
from cirrus_bench.models import bench_photos
from cirrus_bench.perf_analyzer import PerfAnalyzer
from cirrus_bench.report_files import plot, write_report_files
from cirrus_client.bundle import Bundle
from cirrus_client.encoders import Encoder, LocalEncoder
from cirrus_client.gallery import embed_gallery
from cirrus_client.records import Record
from cirrus_client.triton import TritonEncoder
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_demo.probe import rendered_probe

_CONCURRENCY = (1, 2, 4, 8, 16)
_QUERIES = 300
_PHOTOS, _PHOTO_PX, _ROUNDS = 256, 512, 3
_COLOURS = {"p50": "#1f6feb", "p95": "#e09f3e", "p99": "#d1495b"}


class Stage(Record):
    """A served model's mean milliseconds a request, from Triton's statistics: waiting for its turn, and at work."""

    model: str
    queue_ms: float
    compute_ms: float
    mean_batch: float


class QueryReport(Record):
    """bare: the same queries by `LocalEncoder` in one process. stages: at concurrency 1 and at the highest.

    analyzer: what perf_analyzer measures, and its version; or why it is missing. bulk: images a second of
    `embed_gallery` from JPEG photos, in process and through the server.
    """

    bundle: str
    queries: int
    bare: Latency
    served: tuple[Latency, ...]
    stages: dict[int, tuple[Stage, ...]]
    analyzed: tuple[Latency, ...]
    analyzer: str
    bulk: tuple[float, float]
    machine: Machine

    @property
    def overhead_ms(self) -> float:
        """What Triton adds to the median of one query at a time."""
        return self.served[0].p50_ms - self.bare.p50_ms


def measure_queries(bundle: Bundle, work: Path) -> QueryReport:
    """Serve a bundle with the pip-installed Triton, answer cache off, and query it. Every query is another one."""
    queries = rendered_probe(queries=_QUERIES, gallery=2 * _QUERIES).queries
    photos = bench_photos(work, count=_PHOTOS, size_px=_PHOTO_PX)[0].parent
    local = LocalEncoder(bundle)
    bare = measure_latency(local, queries, 1)
    served: list[Latency] = []
    stages: dict[int, tuple[Stage, ...]] = {}
    http, grpc, metrics = free_ports(3)
    repository = bundle.root / "triton" / "python"
    with TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics, cache_bytes=0) as server:
        encoder = TritonEncoder(server.grpc_url)
        for concurrency in _CONCURRENCY:
            before = _statistics(server.grpc_url)
            served.append(measure_latency(encoder, queries, concurrency))
            if concurrency in (_CONCURRENCY[0], _CONCURRENCY[-1]):
                stages[concurrency] = _stages(before, _statistics(server.grpc_url))
        analyzed: list[Latency] = []
        try:
            analyzer = PerfAnalyzer(work / "peers")
            analyzed += [analyzer.measure(server.grpc_url, queries, concurrency) for concurrency in _CONCURRENCY]
            version = f"perf_analyzer {analyzer.version}"
        except PeerError as error:
            version = str(error)
        ways: dict[str, Encoder] = {"local": local, "served": encoder}
        timings = time_interleaved({way: partial(_embed, photos, ways[way]) for way in ways}, _ROUNDS)
    return QueryReport(
        bundle=f"{bundle.spec.recipe} on {bundle.spec.backbone}, {bundle.spec.precision}",
        queries=len(queries),
        bare=bare,
        served=tuple(served),
        stages=stages,
        analyzed=tuple(analyzed),
        analyzer=version,
        bulk=(_PHOTOS / timings["local"].median, _PHOTOS / timings["served"].median),
        machine=this_machine(),
    )


def write_report(report: QueryReport, out: Path) -> None:
    """Write `queries.json`, `queries.md` and `queries.png`."""
    write_report_files(report, markdown(report), out, "queries")
    _plot(report, out / "queries.png")


def markdown(report: QueryReport) -> str:
    """Return the report as Markdown."""
    share = report.overhead_ms / report.bare.p50_ms
    lines = [
        f"# Queries: {report.bundle}",
        "",
        f"{report.queries} single queries of an image and a text, over gRPC on the same machine, answer cache off. "
        f"Triton adds **{report.overhead_ms:.1f} ms** ({share:.0%}) to the median of one query at a time.",
        "",
        "| way | in flight | p50, ms | p95, ms | p99, ms | queries/s |",
        "|---|--:|--:|--:|--:|--:|",
        _row("bare engine, in process", report.bare),
        *(_row("Triton, by Cirrus's client", latency) for latency in report.served),
        *(_row(f"Triton, by {report.analyzer}", latency) for latency in report.analyzed),
    ]
    if not report.analyzed:
        lines += ["", f"Not measured: {report.analyzer}"]
    for concurrency, stages in report.stages.items():
        lines += [
            "",
            f"## Where the time goes, {concurrency} in flight",
            "",
            "| model | waiting, ms | at work, ms | requests a batch |",
            "|---|--:|--:|--:|",
            *(f"| {s.model} | {s.queue_ms:.2f} | {s.compute_ms:.2f} | {s.mean_batch:.1f} |" for s in stages),
        ]
    local, served = report.bulk
    lines += [
        "",
        "## Bulk embedding",
        "",
        f"{_PHOTOS} JPEG photos of {_PHOTO_PX} px: {local:,.1f} images/s in process, {served:,.1f} through the server "
        f"({served / local:.0%}).",
    ]
    return "\n".join([*lines, "", str(report.machine)]) + "\n"


def _row(way: str, latency: Latency) -> str:
    return (
        f"| {way} | {latency.concurrency} | {latency.p50_ms:.1f} | {latency.p95_ms:.1f} | {latency.p99_ms:.1f} "
        f"| {latency.queries_per_s:.1f} |"
    )


def _embed(photos: Path, encoder: Encoder) -> None:
    with tempfile.TemporaryDirectory() as out:
        embed_gallery(photos, Path(out), encoder, show_progress=False)


def _statistics(url: str) -> dict[str, Any]:
    with grpcclient.InferenceServerClient(url) as client:
        answer = client.get_inference_statistics(as_json=True)
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


def _plot(report: QueryReport, file: Path) -> None:
    at = [latency.concurrency for latency in report.served]
    with plot(file, f"Query latency through Triton: {report.bundle}", (8, 4)) as axes:
        for name, colour in _COLOURS.items():
            values = [getattr(latency, f"{name}_ms") for latency in report.served]
            axes.plot(at, values, marker="o", color=colour, label=name)
        axes.axhline(report.bare.p50_ms, color="#9aa4b2", linestyle="--", label="bare engine, p50")
        axes.set_xscale("log", base=2)
        axes.set_xticks(at, [str(value) for value in at])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("queries in flight")
        axes.set_ylabel("milliseconds")
        axes.legend(frameon=False)
