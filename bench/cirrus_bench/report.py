"""The gallery bench's report: JSON for machines, Markdown and a plot for people."""

from __future__ import annotations

from pathlib import Path

from cirrus_bench.gallery import (
    END_TO_END,
    EXACT,
    GALLERY_GRAPH,
    HEAD_ROWS,
    HEAD_SWAP,
    PAPER_GALLERIES,
    PAPERS_WAY,
    SWAP_IMAGES,
    GalleryReport,
    Row,
)
from cirrus_bench.report_files import plot, write_report_files
from cirrus_client.bundle import Precision

_OURS, _PAPERS, _PEERS = "#1f6feb", "#d1495b", "#9aa4b2"


def write_report(report: GalleryReport, out: Path) -> None:
    """Write `report.json`, `report.md` and `report.png`."""
    write_report_files(report, markdown(report), out, "report")
    _plot(report, out / "report.png")


def markdown(report: GalleryReport) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# Embedding a gallery: {report.backbone} + UNION",
        "",
        f"{report.images} JPEG photos of {report.size_px} px, random weights, medians of {report.repeats} interleaved "
        "rounds in one run; spread is (slowest - fastest) / median.",
        "",
        "## End to end: from files to embeddings on disk",
        "",
        *_end_to_end(report),
        "",
        f"`{PAPERS_WAY}` is `extract_index_features` of baohl00/UNION_for_IGROT: a DataLoader of batch 32 with 8 "
        "workers; for each batch the image encoder twice and the text encoder on the empty string. Memory is what a "
        "way takes on top of the process (without the papers' loader processes), a peer's that of its whole process. "
        "Fidelity is that of the gallery's embeddings to the papers' way's: the smallest cosine, and how many of each "
        "image's ten nearest neighbours are the same. Peers embed with plain CLIP, no UNION and no padding, and are "
        "held to that. Photos that look alike under random weights make neighbours a hard test; precision.md is of "
        "the demo model's trained weights.",
        "",
        *(f"- Not measured: {reason}" for reason in report.missing.values()),
        "",
        "## Stage by stage",
        "",
        "| stage | engine | images/s | spread | memory, MiB |",
        "|---|---|--:|--:|--:|",
        *(
            f"| {row.stage} | {row.engine} | {row.images_per_s:,.1f} | {row.spread:.0%} "
            f"| {row.peak_bytes / 2**20:,.0f} |"
            for row in report.rows
            if row.stage != END_TO_END
        ),
        "",
        "The encoder's rows give the image's embedding and all its tokens, as queries need them; the target head's are "
        f"of {HEAD_ROWS:,} embeddings. The gallery graph gives UNION's embedding alone: its last block is computed for "
        "the CLS token.",
        "",
        *_conclusions(report),
        "",
        "## The machine's limits",
        "",
        *_limits(report),
        "",
        "## Batch size",
        "",
        *_sweep(report),
        "",
        str(report.machine),
    ]
    return "\n".join(lines) + "\n"


def _end_to_end(report: GalleryReport) -> list[str]:
    heads = "".join(f" {name} ({count:,}), s |" for name, count in PAPER_GALLERIES.items())
    lines = [
        f"| way | images/s | times the papers' way | spread | memory, MiB | cosine (min) | top-10 agreement |{heads}",
        "|---|--:|--:|--:|--:|--:|--:|" + "--:|" * len(PAPER_GALLERIES),
    ]
    for row in report.of_stage(END_TO_END):
        seconds = "".join(f" {value:,.0f} |" for value in row.gallery_seconds.values())
        fidelity = "| - | - |" if row.cosine_min is None else f"| {row.cosine_min:.6f} | {row.top10_agreement:.1%} |"
        lines.append(
            f"| {row.engine} | {row.images_per_s:,.1f} | {row.images_per_s / report.end(PAPERS_WAY).images_per_s:.2f} "
            f"| {row.spread:.0%} | {row.peak_bytes / 2**20:,.0f} {fidelity}{seconds}"
        )
    return lines


def _conclusions(report: GalleryReport) -> list[str]:
    decode = report.of_stage("decode + preprocess")[0]
    lines = []
    for precision in Precision:
        ends = [row for row in report.of_stage(END_TO_END) if row.engine == f"Cirrus, {precision}"]
        if not ends:
            continue
        graph = _gallery_graph(report, precision)
        shared = 1 / (1 / graph.images_per_s + 1 / decode.images_per_s)
        slower = min(graph.images_per_s, decode.images_per_s)
        lines.append(
            f"- {precision}: end to end runs at {ends[0].images_per_s / slower:.0%} of the slower of decode and the "
            f"graph alone, and at {ends[0].images_per_s / shared:.0%} of what cores can do that have to do both."
        )
    swap, exact, papers = (report.end(way).images_per_s for way in (HEAD_SWAP, EXACT, PAPERS_WAY))
    return [
        *lines,
        f"- A new head over cached features ({SWAP_IMAGES:,} files, the photos under several names) is "
        f"**{swap / papers:.0f} times** as fast as embedding again the papers' way, {swap / exact:.0f} times as fast "
        "as Cirrus from the files at fp32.",
        f"- UNION's own cost over the plain image embedding: **{report.union_cost:.2%}** of the time of the "
        "gallery graph without it.",
    ]


def _limits(report: GalleryReport) -> list[str]:
    operations = report.operations_per_image
    decode = report.of_stage("decode + preprocess")[0].images_per_s
    lines = [
        f"One image is {operations / 1e9:.1f} G operations in the gallery graph. The rate is that of products of "
        "2,048 x 2,048 matrices on the engine named, measured in the same rounds. A graph at that rate, with decoding "
        "on the same cores and nothing else, would be the times the papers' way in the last column.",
        "",
        "| precision | engine | products, G operations/s | images/s at that rate | gallery graph, images/s | share "
        "| end to end at most, times the papers' way |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for rate in report.gemm:
        limit = rate.operations_per_s / operations
        reached = _gallery_graph(report, rate.precision).images_per_s
        at_most = 1 / (1 / limit + 1 / decode) / report.end(PAPERS_WAY).images_per_s
        lines.append(
            f"| {rate.precision} | {rate.engine} | {rate.operations_per_s / 1e9:,.0f} | {limit:,.1f} | {reached:,.1f} "
            f"| {reached / limit:.0%} | {at_most:.1f} |"
        )
    return lines


def _sweep(report: GalleryReport) -> list[str]:
    sizes = sorted({row.batch_size for row in report.sweep})
    lines = [
        "The gallery graph alone, images/s, on the engine that `auto` takes.",
        "",
        f"| precision | engine |{''.join(f' batch {size} |' for size in sizes)}",
        "|---|---|" + "--:|" * len(sizes),
    ]
    for precision in dict.fromkeys(row.precision for row in report.sweep):
        of_precision = [row for row in report.sweep if row.precision is precision]
        rates = "".join(f" {row.images_per_s:,.1f} |" for row in of_precision)
        lines.append(f"| {precision} | {of_precision[0].engine} |{rates}")
    return lines


def _gallery_graph(report: GalleryReport, precision: Precision) -> Row:
    return next(row for row in report.of_stage(GALLERY_GRAPH) if row.engine.startswith(f"{precision}:"))


def _plot(report: GalleryReport, file: Path) -> None:
    rows = [row for row in report.of_stage(END_TO_END) if "cached" not in row.engine]
    rows.sort(key=lambda row: row.images_per_s)
    papers = report.end(PAPERS_WAY).images_per_s
    title = f"{report.backbone} + UNION on {report.machine.cores} cores"
    with plot(file, title, (9, 0.42 * len(rows) + 1.4)) as axes:
        bars = axes.barh(
            [row.engine for row in rows],
            [row.images_per_s for row in rows],
            color=[_colour(row) for row in rows],
            height=0.62,
        )
        labels = [f"{row.images_per_s:.1f}  ({row.images_per_s / papers:.1f}x)" for row in rows]
        axes.bar_label(bars, labels=labels, padding=4, fontsize=9)
        axes.set_xlim(right=1.18 * rows[-1].images_per_s)
        axes.set_xlabel("images per second, from JPEG files to embeddings on disk")


def _colour(row: Row) -> str:
    if row.engine == PAPERS_WAY:
        return _PAPERS
    return _OURS if row.engine.startswith("Cirrus") else _PEERS
