"""Every precision of the demo model, which is trained: what it keeps, and how fast its gallery graph is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from cirrus_bench.measure import Machine, this_machine, time_interleaved
from cirrus_bench.models import demo_request
from cirrus_bench.report_files import write_report_files
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.engines import candidates
from cirrus_client.records import Record
from cirrus_demo.probe import rendered_probe
from cirrus_demo.weights import materialise
from cirrus_export.gate.fidelity import FidelityReport
from cirrus_export.pipeline import export

_QUERIES, _GALLERY = 240, 480
_BATCH, _BATCHES, _ROUNDS = 32, 8, 5


class PrecisionRow(Record):
    """A precision: the worst cosine of its embeddings to the torch original's, its retrieval, and its speed."""

    precision: Precision
    engine: str
    cosine_min: float
    top10_agreement: float
    recall_at_10: float
    images_per_s: float


class PrecisionReport(Record):
    """All precisions that an engine here runs, on the same probe."""

    queries: int
    gallery: int
    recall_at_10_original: float
    rows: tuple[PrecisionRow, ...]
    machine: Machine


def measure_precisions(work: Path) -> PrecisionReport:
    """Export the demo at every precision that runs here, and measure its gallery graphs in turn."""
    weights = materialise(work / "weights")
    probe = rendered_probe(queries=_QUERIES, gallery=_GALLERY)
    bundles = {
        precision: export(demo_request(weights, work / str(precision), precision), probe)
        for precision in Precision
        if candidates(precision)
    }
    graphs = {precision: LocalEncoder(bundle).graph("gallery") for precision, bundle in bundles.items()}
    size = bundles[Precision.FP32].spec.preprocess.size_px
    pixels = np.random.default_rng(0).standard_normal((_BATCH, 3, size, size), dtype=np.float32)

    def run(precision: Precision) -> None:
        for _ in range(_BATCHES):
            graphs[precision]({"pixels": pixels})

    timings = time_interleaved({precision: partial(run, precision) for precision in graphs}, _ROUNDS)
    rows = [
        _row(precision, bundle, graphs[precision].device, _BATCH * _BATCHES / timings[precision].median)
        for precision, bundle in bundles.items()
    ]
    original = _report(bundles[Precision.FP32]).retrieval[0].recall_at_10_original
    return PrecisionReport(
        queries=_QUERIES,
        gallery=_GALLERY,
        recall_at_10_original=original,
        rows=tuple(rows),
        machine=this_machine(),
    )


def write_report(report: PrecisionReport, out: Path) -> None:
    """Write `precision.json` and `precision.md`."""
    write_report_files(report, markdown(report), out, "precision")


def markdown(report: PrecisionReport) -> str:
    """Return the report as Markdown."""
    first = report.rows[0].images_per_s
    lines = [
        "# The demo model at every precision",
        "",
        f"Against the torch original on {report.queries} labelled queries over {report.gallery} images, whose "
        f"Recall@10 is {report.recall_at_10_original:.2%}. Speed is that of the gallery graph (encoder and UNION head) "
        f"at batch {_BATCH}, on the engine that `auto` takes; a CPU emulates float8, and mostly float16.",
        "",
        "| precision | engine | cosine (min) | top-10 agreement | Recall@10 | images/s | times fp32 |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(
            f"| {row.precision} | {row.engine} | {row.cosine_min:.6f} | {row.top10_agreement:.2%} "
            f"| {row.recall_at_10:.2%} | {row.images_per_s:,.0f} | {row.images_per_s / first:.2f} |"
            for row in report.rows
        ),
        "",
        str(report.machine),
    ]
    return "\n".join(lines) + "\n"


def _row(precision: Precision, bundle: Bundle, engine: str, images_per_s: float) -> PrecisionRow:
    retrieval = _report(bundle).retrieval[0]
    return PrecisionRow(
        precision=precision,
        engine=engine,
        cosine_min=min(retrieval.query_cosine_min, retrieval.target_cosine_min),
        top10_agreement=retrieval.top10_agreement,
        recall_at_10=retrieval.recall_at_10_exported,
        images_per_s=images_per_s,
    )


def _report(bundle: Bundle) -> FidelityReport:
    return FidelityReport.model_validate_json((bundle.root / "report.json").read_bytes())
