"""`cirrus bench` and `cirrus gpu-check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_bench.retrieval.datasets import DatasetName

bench = typer.Typer(help="Measure speed and retrieval quality.", no_args_is_help=True)


@bench.command()
def gallery(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.json, report.md and report.png.")],
    backbone: Annotated[str, typer.Option(help="An open_clip model; its weights are random.")] = "ViT-B-32-quickgelu",
    images: Annotated[int, typer.Option(min=8, help="Photos in the gallery.")] = 128,
    size_px: Annotated[int, typer.Option(min=64, help="Longer side of a photo.")] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="How often every row is measured; medians are reported.")] = 3,
    work: Annotated[Path, typer.Option(help="Where photos, bundles and other tools are kept for the next run.")] = Path(
        "build/bench"
    ),
    peers: Annotated[bool, typer.Option(help="Install other tools, 6 GB of them, and measure them as well.")] = True,
) -> None:
    """Measure what it costs to embed a gallery, side by side with the papers' way."""
    from cirrus_bench.gallery import BenchRequest, measure_gallery
    from cirrus_bench.report import markdown, write_report

    request = BenchRequest(backbone=backbone, images=images, size_px=size_px, repeats=repeats, work=work, peers=peers)
    report = measure_gallery(request)
    write_report(report, out)
    typer.echo(markdown(report))
    typer.echo(f"written: {out / 'report.md'}, report.json, report.png")


@bench.command()
def retrieval(
    bundle: Annotated[list[Path], typer.Option("--bundle", "-b", help="A bundle; repeat it to compare several.")],
    root: Annotated[Path, typer.Option(help="The benchmark's folder, with its official files and images.")],
    dataset: Annotated[DatasetName, typer.Option(help="The benchmark.")] = DatasetName.FASHIONIQ,
    split: Annotated[str, typer.Option(help="val, test1, test; zeroshot1 and the like for sketches.")] = "val",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for retrieval.json and retrieval.md.")] = Path(
        "build/retrieval"
    ),
    work: Annotated[Path, typer.Option(help="Where embedded galleries are kept; submissions go there as well.")] = Path(
        "build/retrieval/work"
    ),
) -> None:
    """Measure retrieval on a benchmark's official files; on a test split, write the submission."""
    from cirrus_bench.measure import this_machine
    from cirrus_bench.retrieval.datasets import read_dataset
    from cirrus_bench.retrieval.evaluate import evaluate
    from cirrus_bench.retrieval.report import RetrievalReport, markdown, write_report
    from cirrus_client.bundle import Bundle

    tasks = read_dataset(dataset, root, split)
    evaluations = []
    for path in bundle:
        opened = Bundle.open(path)
        place = work / f"{opened.spec.name}-{opened.spec.space.fingerprint[:12]}" / f"{dataset}-{split}"
        evaluation, written = evaluate(opened, dataset, tasks, root=root, split=split, work=place)
        evaluations.append(evaluation)
        for file in written:
            typer.echo(f"submission: {file}")
    report = RetrievalReport(evaluations=tuple(evaluations), machine=this_machine())
    if all(evaluation.scores for evaluation in evaluations):
        write_report(report, out)
        typer.echo(markdown(report))
        typer.echo(f"written: {out / 'retrieval.md'}, retrieval.json")


@bench.command()
def precision(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for precision.json and precision.md.")],
    work: Annotated[Path, typer.Option(help="Where the bundles are written.")] = Path("build/bench/precision"),
) -> None:
    """Export the demo model at every precision that runs here: what each keeps, and how fast it is."""
    from cirrus_bench.precisions import markdown, measure_precisions, write_report

    report = measure_precisions(work)
    write_report(report, out)
    typer.echo(markdown(report))


@bench.command()
def search(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for search.json and search.md.")],
    single: Annotated[int, typer.Option(min=1000, help="Images of one vector.")] = 100_000,
    multi: Annotated[int, typer.Option(min=100, help="Images of 32 vectors.")] = 10_000,
) -> None:
    """Measure search against bare FAISS: exact and approximate, one vector an image and several."""
    from cirrus_bench.search import markdown, measure_search, write_report

    report = measure_search(single=single, multi=multi)
    write_report(report, out)
    typer.echo(markdown(report))


@bench.command()
def queries(
    bundle: Annotated[Path, typer.Argument(help="A bundle that passed its gate.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for queries.json, queries.md and queries.png.")],
    work: Annotated[Path, typer.Option(help="Where photos are kept for the next run.")] = Path("build/bench"),
) -> None:
    """Measure a real Triton against the bare engine: query latency by concurrency, and bulk embedding."""
    from cirrus_bench.queries import markdown, measure_queries, write_report
    from cirrus_client.bundle import Bundle

    report = measure_queries(Bundle.open(bundle), work)
    write_report(report, out)
    typer.echo(markdown(report))


@bench.command()
def full_size(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for full_size.json and full_size.md.")],
    work: Annotated[Path, typer.Option(help="Where bundles are written and removed again.")] = Path("build/full-size"),
) -> None:
    """Export and verify every architecture at its published size, with random weights."""
    from cirrus_bench.full_size import export_full_sizes, markdown, write_report

    report = export_full_sizes(work)
    write_report(report, out)
    typer.echo(markdown(report))


def gpu_check_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for gpu_check.json and gpu_check.md.")],
    full_size: Annotated[bool, typer.Option(help="Also on a random ViT-L-14 in fp16; needs 8 GiB of memory.")] = False,
    work: Annotated[Path, typer.Option(help="Where the checked bundles are written.")] = Path("build/gpu-check"),
) -> None:
    """Verify everything that uses a GPU, on this machine, and write a report. Exits 1 if something fails."""
    from cirrus_bench.gpu_check import check_gpu, markdown, write_report

    report = check_gpu(work, full_size=full_size)
    write_report(report, out)
    typer.echo(markdown(report))
    typer.echo(f"written: {out / 'gpu_check.md'}, gpu_check.json")
    if not report.passed:
        raise typer.Exit(1)
