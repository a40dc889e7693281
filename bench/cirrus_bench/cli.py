"""`cirrus bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.json, report.md and report.png.")],
    backbone: Annotated[str, typer.Option(help="An open_clip model; its weights are random.")] = "ViT-B-32-quickgelu",
    images: Annotated[int, typer.Option(min=8, help="Photos in the gallery.")] = 128,
    size_px: Annotated[int, typer.Option(min=64, help="Longer side of a photo.")] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="How often every row is measured; medians are reported.")] = 3,
    work: Annotated[Path, typer.Option(help="Where the photos and the bundle are kept for the next run.")] = Path(
        "build/bench"
    ),
) -> None:
    """Measure what it costs to embed a gallery, side by side with the papers' way."""
    from cirrus_bench.gallery import BenchRequest, measure_gallery
    from cirrus_bench.report import markdown, write_report

    request = BenchRequest(backbone=backbone, images=images, size_px=size_px, repeats=repeats, work=work)
    report = measure_gallery(request)
    write_report(report, out)
    typer.echo(markdown(report))
    typer.echo(f"written: {out / 'report.md'}, report.json, report.png")
