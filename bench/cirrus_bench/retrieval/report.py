"""The retrieval table: JSON for machines, Markdown for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cirrus_bench.measure import Machine
from cirrus_bench.report_files import write_report_files
from cirrus_bench.retrieval.evaluate import Evaluation
from cirrus_client.records import Record


class RetrievalReport(Record):
    """Evaluations of one run, side by side."""

    evaluations: tuple[Evaluation, ...]
    machine: Machine


def write_report(report: RetrievalReport, out: Path) -> None:
    """Write `retrieval.json` and `retrieval.md`."""
    write_report_files(report, markdown(report), out, "retrieval")


def markdown(report: RetrievalReport) -> str:
    """Return the table: a row a bundle, metrics as means over the benchmark's tasks, in percent."""
    first = report.evaluations[0]
    names = list(dict.fromkeys(score.metric for score in first.scores))
    lines = [
        f"# Retrieval on {first.dataset}, split {first.split}",
        "",
        f"| bundle | recipe |{''.join(f' {name} |' for name in names)} graphs, MB | vectors an image | ms a query | "
        "ms an image |",
        "|---|---|" + "--:|" * (len(names) + 4),
        *(_row(evaluation, names) for evaluation in report.evaluations),
        "",
        f"Times are means of one run, decoding included. {report.machine}",
    ]
    return "\n".join(lines) + "\n"


def _row(evaluation: Evaluation, names: Sequence[str]) -> str:
    scores = "".join(f" {evaluation.score(name):.2%} |" for name in names)
    image = "cached" if evaluation.image_ms is None else f"{evaluation.image_ms:.1f}"
    return (
        f"| {evaluation.bundle} | {evaluation.recipe} |{scores} {evaluation.size_bytes / 1e6:.1f} | "
        f"{evaluation.vectors} | {evaluation.query_ms:.1f} | {image} |"
    )
