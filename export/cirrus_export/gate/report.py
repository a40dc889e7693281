"""The fidelity report as a page that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cirrus_client.files import write_atomically, write_model
from cirrus_export.gate.fidelity import FidelityReport


def write_report(report: FidelityReport, root: Path) -> None:
    """Write `report.json` and `report.md`."""
    write_model(root / "report.json", report)
    write_atomically(root / "report.md", markdown(report).encode())


def opening(name: str, on: str, failures: Sequence[str], *, kind: str) -> list[str]:
    """Return the first lines of a report: the verdict, and what missed its threshold.

    on: what was measured, in a sentence. kind: of what is reported on, like "bundle".
    """
    verdict = f"**FAILED**: this {kind} is not to be served" if failures else "**passed**"
    lines = [f"# Fidelity of {name}", "", f"The gate is {verdict}. {on}", ""]
    if failures:
        lines += ["## What missed its threshold", "", *(f"- {failure}" for failure in failures), ""]
    return lines


def markdown(report: FidelityReport) -> str:
    """Return the report as Markdown."""
    limits = report.thresholds
    on = f"Precision {report.precision}, run on {report.engine}, probe `{report.probe}`."
    lines = [
        *opening(report.bundle, on, report.failures, kind="bundle"),
        "## The whole pipeline against the torch original",
        "",
        "From image bytes and edit text to a ranking, over the probe's labelled queries.",
        "",
        "| ensemble | queries | gallery | query cosine (min) | target cosine (min) | top-10 agreement "
        "| Recall@10 original | Recall@10 exported |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.ensemble} | {row.queries} | {row.gallery} | {row.query_cosine_min:.7f} | {row.target_cosine_min:.7f} "
        f"| {row.top10_agreement:.2%} | {row.recall_at_10_original:.2%} | {row.recall_at_10_exported:.2%} |"
        for row in report.retrieval
    ]
    lines += [
        "",
        f"Thresholds: cosine {limits.cosine_min}, top-10 agreement {limits.top10_agreement:.1%}, "
        f"Recall@10 within {limits.recall_at_10_delta:.1%}.",
        "",
        "## Stage by stage",
        "",
        "Each graph against its torch module on the same inputs; and one item at a time against a batch.",
        "",
        "| graph | output | items | cosine (min) | max abs difference | batch 1 vs n, cosine (min) |",
        "|---|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.graph} | {row.output} | {row.items} | {row.cosine_min:.7f} | {row.max_abs:.2e} "
        f"| {row.batch_cosine_min:.7f} |"
        for row in report.stages
    ]
    if report.cuts:
        lines += [
            "",
            "## Texts cut to the length that they need",
            "",
            "Texts that end at a length and one token before it, with the probe's own that fit.",
            "",
            "| ensemble | tokens | texts | to the original, uncut: cosine (min) | to the export, uncut: cosine (min) |",
            "|---|--:|--:|--:|--:|",
            *(
                f"| {cut.ensemble} | {cut.length} | {cut.items} | {cut.cosine_min:.7f} | {cut.cut_cosine_min:.7f} |"
                for cut in report.cuts
            ),
        ]
    if report.reranker is not None:
        reranker = report.reranker
        lines += [
            "",
            "## The reranker against the torch original",
            "",
            f"{reranker.queries} queries, {reranker.candidates} candidates each: cosine of a query's scores "
            f"{reranker.cosine_min:.7f} (min), difference of a score {reranker.max_abs:.2e} (max), top-10 agreement "
            f"{reranker.top10_agreement:.2%}.",
        ]
    if report.decoding is not None:
        drift = report.decoding
        lines += [
            "",
            "## Fast decoding",
            "",
            f"`cirrus embed --decode fast` changes the pixels of {drift.changed} of the probe's {drift.images} images: "
            f"cosine to exact decoding {drift.target_cosine_min:.6f} (min), top-10 agreement "
            f"{drift.top10_agreement:.2%}.",
        ]
    return "\n".join(lines) + "\n"
