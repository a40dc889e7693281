"""The bench's report: JSON for machines, Markdown and a plot for people."""

from __future__ import annotations

from pathlib import Path

from cirrus_bench.gallery import PAPER_GALLERIES, GalleryReport
from cirrus_client.files import atomic_path, write_atomically, write_model

_OURS, _OTHERS = "#1f6feb", "#9aa4b2"


def write_report(report: GalleryReport, out: Path) -> None:
    """Write `report.json`, `report.md` and `report.png`."""
    write_model(out / "report.json", report)
    write_atomically(out / "report.md", markdown(report).encode())
    with atomic_path(out / "report.png") as path:
        _plot(report, path)


def markdown(report: GalleryReport) -> str:
    """Return the report as Markdown."""
    machine = report.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    heads = "".join(f" {name} ({count:,}), s |" for name, count in PAPER_GALLERIES.items())
    lines = [
        f"# Embedding a gallery: {report.backbone} + UNION",
        "",
        f"{report.images} JPEG photos of {report.size_px} px, random weights, fp32, medians of {report.repeats} "
        "interleaved rounds in one run. Quote ratios, not seconds: shared machines are noisy.",
        "",
        f"| stage | engine | images/s | spread |{heads}",
        "|---|---|--:|--:|" + "--:|" * len(PAPER_GALLERIES),
    ]
    for row in report.rows:
        seconds = "".join(f" {value:,.0f} |" for value in row.gallery_seconds.values())
        lines.append(f"| {row.stage} | {row.engine} | {row.images_per_s:,.1f} | {row.spread:.0%} |{seconds}")
    lines += [
        "",
        f"- End to end, Cirrus is **{report.speedup:.2f} times** as fast as the papers' way; the smallest cosine "
        f"between the two ways' embeddings is {report.cosine_min:.6f}.",
        f"- A new head over cached features is **{report.head_swap:.0f} times** as fast as embedding from the files; "
        f"the smallest cosine between the two ways' embeddings is {report.cached_cosine_min:.6f}.",
        f"- UNION's own cost over the plain image embedding: **{report.union_cost:.2%}** of the encoder's time.",
        "",
        "The papers' way is `extract_index_features` of baohl00/UNION_for_IGROT: a DataLoader of batch 32 with 8 "
        "workers; for each batch the image encoder twice and the text encoder on the empty string.",
        "",
        f"Machine: {machine.processor}, {machine.cores} cores, GPU: {machine.gpu}. "
        f"Python {machine.python}, {packages}.",
    ]
    return "\n".join(lines) + "\n"


def _plot(report: GalleryReport, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in reversed(report.rows) if row.stage != "target head" and "cached" not in row.engine]
    labels = [f"{row.stage}\n{row.engine}" for row in rows]
    colours = [_OTHERS if "PyTorch" in row.engine else _OURS for row in rows]
    figure, axes = pyplot.subplots(figsize=(9, 0.7 * len(rows) + 1.4), constrained_layout=True)
    bars = axes.barh(labels, [row.images_per_s for row in rows], color=colours, height=0.62)
    axes.bar_label(bars, fmt="%.0f", padding=4, fontsize=9)
    axes.set_xlabel("images per second (the target head alone is off this scale)")
    axes.set_title(f"{report.backbone} + UNION on {report.machine.cores} cores, fp32", loc="left", fontsize=11)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=140)
    pyplot.close(figure)
