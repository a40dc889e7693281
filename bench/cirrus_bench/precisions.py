"""The trained demo model at every precision: its fidelity, its retrieval, and the speed of its gallery graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from cirrus_bench.measure import this_machine, time_interleaved
from cirrus_bench.report import Report
from cirrus_bench.subjects import demo_request
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.engines import candidates
from cirrus_client.names import GraphName, TensorName
from cirrus_client.records import Record
from cirrus_demo.probe import rendered_probe
from cirrus_demo.weights import materialise
from cirrus_export.gate.fidelity import FidelityReport
from cirrus_export.pipeline import export

_QUERIES, _GALLERY = 240, 480
_BATCH, _BATCHES, _ROUNDS = 32, 8, 5


class PrecisionRow(Record):
    """One precision.

    device: the engine that ran the gallery graph. cosine_min, top10_agreement: compared with the torch original.
    recall_at_10: on the probe's labelled queries. images_per_s: of the gallery graph.
    """

    precision: Precision
    device: str
    cosine_min: float
    top10_agreement: float
    recall_at_10: float
    images_per_s: float


class PrecisionReport(Report):
    """All precisions that an engine here runs, on the same probe of labelled queries over a gallery."""

    file_name: ClassVar[str] = "precision"

    queries: int
    gallery: int
    recall_at_10_original: float
    rows: tuple[PrecisionRow, ...]

    def markdown(self) -> str:
        """Render the report as Markdown."""
        first = self.rows[0].images_per_s
        lines = [
            "# The demo model at every precision",
            "",
            f"Compared with the torch original on {self.queries} labelled queries over {self.gallery} images, whose "
            f"Recall@10 is {self.recall_at_10_original:.2%}. Speed is that of the gallery graph (encoder and UNION "
            f"head) at batch {_BATCH}, on the engine that `auto` chooses. CPUs emulate fp8, and most emulate fp16.",
            "",
            "| precision | engine | cosine (min) | top-10 agreement | Recall@10 | images/s | times fp32 |",
            "|---|---|--:|--:|--:|--:|--:|",
            *(
                f"| {row.precision} | {row.device} | {row.cosine_min:.6f} | {row.top10_agreement:.2%} "
                f"| {row.recall_at_10:.2%} | {row.images_per_s:,.0f} | {row.images_per_s / first:.2f} |"
                for row in self.rows
            ),
            "",
            str(self.machine),
        ]
        return "\n".join(lines) + "\n"


def measure_precisions(work: Path) -> PrecisionReport:
    """Export the demo at every precision that runs here, and time the gallery graphs in turn."""
    weights = materialise(work / "weights")
    probe = rendered_probe(queries=_QUERIES, gallery=_GALLERY)
    bundles = {
        precision: export(demo_request(weights, work / str(precision), precision), probe)
        for precision in Precision
        if candidates(precision)
    }
    graphs = {precision: LocalEncoder(bundle).graph(GraphName.GALLERY) for precision, bundle in bundles.items()}
    size = bundles[Precision.FP32].spec.preprocess.size_px
    pixels = np.random.default_rng(0).standard_normal((_BATCH, 3, size, size), dtype=np.float32)

    def run(precision: Precision) -> None:
        for _ in range(_BATCHES):
            graphs[precision]({TensorName.PIXELS: pixels})

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


def _row(precision: Precision, bundle: Bundle, device: str, images_per_s: float) -> PrecisionRow:
    retrieval = _report(bundle).retrieval[0]
    return PrecisionRow(
        precision=precision,
        device=device,
        cosine_min=min(retrieval.query_cosine_min, retrieval.target_cosine_min),
        top10_agreement=retrieval.top10_agreement,
        recall_at_10=retrieval.recall_at_10_exported,
        images_per_s=images_per_s,
    )


def _report(bundle: Bundle) -> FidelityReport:
    return FidelityReport.model_validate_json((bundle.root / "report.json").read_bytes())
