"""`cirrus bench` and `cirrus gpu-check`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cirrus_bench.retrieval.datasets import DatasetName
from cirrus_client.cli.console import shows_progress

if TYPE_CHECKING:
    from cirrus_bench.report import Report

bench = typer.Typer(help="Measure speed and retrieval quality.", no_args_is_help=True)


def _made(folder: Path) -> Path:
    """Make a report's folder and check that it can be written, before hours are spent measuring."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        return folder


def _folder(files: str) -> Any:
    return typer.Option("--out", "-o", callback=_made, help=f"Folder for {files}.")


@bench.command()
def gallery(
    out: Annotated[Path, _folder("report.json, report.md and report.png")],
    backbone: Annotated[str, typer.Option(help="An open_clip model; its weights are random.")] = "ViT-B-32-quickgelu",
    images: Annotated[int, typer.Option(min=8, help="Photos in the gallery.")] = 128,
    size_px: Annotated[int, typer.Option(min=64, help="Longer side of a photo.")] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds; medians are reported.")] = 3,
    work: Annotated[Path, typer.Option(help="Where photos, bundles and other tools are kept for the next run.")] = Path(
        "build/bench"
    ),
    peers: Annotated[bool, typer.Option(help="Install other tools (6 GB) and measure them as well.")] = True,
) -> None:
    """Measure the cost of embedding a gallery, compared with the baseline and with other tools."""
    from cirrus_bench.gallery.measure import BenchRequest, measure_gallery

    request = BenchRequest(backbone=backbone, images=images, size_px=size_px, repeats=repeats, work=work, peers=peers)
    _publish(measure_gallery(request), out)


@bench.command()
def retrieval(
    bundle: Annotated[list[Path], typer.Option("--bundle", "-b", help="A bundle; repeat it to compare several.")],
    root: Annotated[Path, typer.Option(help="The benchmark's folder, with its official files and images.")],
    dataset: Annotated[DatasetName, typer.Option(help="The benchmark.")] = DatasetName.FASHIONIQ,
    split: Annotated[str, typer.Option(help="val, test1 or test; zeroshot1 and the like for sketches.")] = "val",
    rerank: Annotated[
        int | None,
        typer.Option(min=1, help="Also measure bundles that have a reranker with so many of the best ordered anew."),
    ] = None,
    out: Annotated[Path, _folder("retrieval.json and retrieval.md")] = Path("build/retrieval"),
    work: Annotated[Path, typer.Option(help="Where embedded galleries are kept, and submissions written.")] = Path(
        "build/retrieval/work"
    ),
) -> None:
    """Measure retrieval on a benchmark's official files; on a test split, write the submission."""
    from cirrus_bench.retrieval.datasets import read_dataset
    from cirrus_bench.retrieval.evaluate import evaluate_all
    from cirrus_client.bundle import Bundle

    tasks = read_dataset(dataset, root, split)
    report, submissions = evaluate_all(
        [Bundle.open(path) for path in bundle], dataset, tasks, root=root, split=split, work=work, rerank=rerank
    )
    for file in submissions:
        typer.echo(f"submission: {file}")
    if report is not None:
        _publish(report, out)


@bench.command()
def precision(
    out: Annotated[Path, _folder("precision.json and precision.md")],
    work: Annotated[Path, typer.Option(help="Where the bundles are written.")] = Path("build/bench/precision"),
) -> None:
    """Export the demo model at every precision that runs here; measure its fidelity, retrieval and speed."""
    from cirrus_bench.precisions import measure_precisions

    _publish(measure_precisions(work), out)


@bench.command()
def search(
    out: Annotated[Path, _folder("search.json and search.md")],
    single: Annotated[int, typer.Option(min=1000, help="Images with one vector.")] = 100_000,
    multi: Annotated[int, typer.Option(min=100, help="Images with 32 vectors.")] = 10_000,
) -> None:
    """Measure search compared with bare FAISS: exact and approximate, with one and with 32 vectors per image."""
    from cirrus_bench.search import measure_search

    _publish(measure_search(single=single, multi=multi), out)


@bench.command()
def index(
    out: Annotated[Path, _folder("index.json and index.md")],
    single: Annotated[
        list[int] | None,
        typer.Option(min=10_000, help="Images with one vector of width 512.", show_default="100,000 and 1,000,000"),
    ] = None,
    multi: Annotated[int, typer.Option(min=1_000, help="Images with 32 vectors of width 256.")] = 100_000,
    work: Annotated[Path, typer.Option(help="Where galleries and indexes are written: 30 GB.")] = Path("build/bench"),
) -> None:
    """Measure every kind of index over a large gallery: memory, time to build, speed and agreement."""
    from cirrus_bench.indexes import Shape, measure_indexes

    shapes = [Shape(images=images, vectors=1, dim=512) for images in single or (100_000, 1_000_000)]
    shapes.append(Shape(images=multi, vectors=32, dim=256))
    _publish(measure_indexes(shapes, work), out)


@bench.command()
def scale(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    out: Annotated[Path, _folder("scale.json and scale.md")],
    images: Annotated[int, typer.Option(min=64, help="Photos per run.")] = 192,
    size_px: Annotated[int, typer.Option(min=64, help="Longer side of the photos.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of one run per number of workers.")] = 3,
    workers: Annotated[int, typer.Option(min=2, help="Workers of the larger run, with a core each.")] = 2,
    work: Annotated[Path, typer.Option(help="Where photos are kept for the next run.")] = Path("build/bench"),
) -> None:
    """Measure embedding on a Ray cluster of this machine, with one worker and with several, pinned to a core each."""
    from cirrus_bench.scale import measure_scale
    from cirrus_client.bundle import Bundle

    opened, numbers = Bundle.open(bundle, allow_failed=True), (1, workers)
    _publish(measure_scale(opened, work, images=images, size_px=size_px, rounds=rounds, workers=numbers), out)


@bench.command()
def queries(
    bundle: Annotated[Path, typer.Argument(help="A bundle that passed its gate.")],
    out: Annotated[Path, _folder("queries.json, queries.md and queries.png")],
    work: Annotated[Path, typer.Option(help="Where photos are kept for the next run.")] = Path("build/bench"),
) -> None:
    """Measure queries through a real Triton compared with queries in process: latency, and bulk embedding."""
    from cirrus_bench.queries import measure_queries
    from cirrus_client.bundle import Bundle

    _publish(measure_queries(Bundle.open(bundle), work), out)


@bench.command()
def service(
    out: Annotated[Path, _folder("service.json and service.md")],
    backbone: Annotated[str, typer.Option(help="An open_clip model; its weights are random.")] = "ViT-B-32-quickgelu",
    endurance_s: Annotated[float, typer.Option(min=0, help="Seconds at 80% of the most that the service takes.")] = 0,
    work: Annotated[Path, typer.Option(help="Where photos, bundles and indexes are kept for the next run.")] = Path(
        "build/bench"
    ),
) -> None:
    """Measure the search service, HTTP in and JSON out, compared with the bare engine and bare FAISS."""
    from cirrus_bench.service.measure import ServiceRequest, measure_service
    from cirrus_bench.subjects import bench_subjects

    bundles = tuple(bench_subjects(backbone, work).bundles.values())
    _publish(measure_service(ServiceRequest(bundles, work, endurance_s)), out)


@bench.command()
def service_peers(
    out: Annotated[Path, _folder("service_peers.json and service_peers.md")],
    backbone: Annotated[str, typer.Option(help="An open_clip model; its weights are random.")] = "ViT-B-32-quickgelu",
    work: Annotated[
        Path, typer.Option(help="Where photos, bundles and other tools (4 GB) are kept for the next run.")
    ] = Path("build/bench"),
) -> None:
    """Measure the search service compared with other tools that search by an image or a text over HTTP."""
    from cirrus_bench.service_peers.measure import measure_service_peers

    _publish(measure_service_peers(backbone, work), out)


@bench.command()
def full_size(
    out: Annotated[Path, _folder("full_size.json and full_size.md")],
    work: Annotated[Path, typer.Option(help="Where bundles are written and removed again.")] = Path("build/full-size"),
) -> None:
    """Export and verify every architecture at its published size, with random weights."""
    from cirrus_bench.full_size import export_full_sizes

    _publish(export_full_sizes(work), out)


@bench.command()
def floor(
    bundle: Annotated[list[Path], typer.Argument(help="Bundles, of any precision; nothing is run.")],
    out: Annotated[Path, _folder("floor.json and floor.md")],
    batch: Annotated[int, typer.Option(min=1, help="Images or queries in a batch.")] = 64,
) -> None:
    """Count each graph's operations and bytes, and the shortest time that GPUs' published rates give for them."""
    from cirrus_bench.floor_report import floors_of
    from cirrus_client.bundle import Bundle

    _publish(floors_of([Bundle.open(path) for path in bundle], batch), out)


@bench.command()
def resolution(
    backbone: Annotated[str, typer.Option(help="qwen3-vl, qwen2.5-vl, qwen2-vl or llava-next.")],
    pretrained: Annotated[Path, typer.Option(help="The model's folder, with its image processor.")],
    out: Annotated[Path, _folder("resolution.json and resolution.md")],
    size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Side of a square in pixels; repeatable.", show_default="224, 448 and 672"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of vlm-embedder as name=value, like wording=vlm2vec; repeatable."),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(help="Your images and queries, in FashionIQ's layout; else Cirrus's own.")
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Number of queries that are taken from the probe.")] = 64,
    gallery: Annotated[int, typer.Option(min=11, help="Number of gallery images that are taken from the probe.")] = 128,
) -> None:
    """Measure what a vision-language embedder loses where images are squares of one size, not as published."""
    from cirrus_bench.resolution import measure_resolution, original
    from cirrus_export.arguments import options_of, probe_of

    recipe = original(backbone, pretrained, options_of(option or []))
    images = probe_of(probe, queries=queries, gallery=gallery)
    sizes = size or (224, 448, 672)
    _publish(measure_resolution(recipe, pretrained, images, sizes, show_progress=shows_progress()), out)


def gpu_check_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for gpu_check.json and gpu_check.md.")],
    full_size: Annotated[bool, typer.Option(help="Also check a random ViT-L-14 in fp16 (8 GiB of memory).")] = False,
    work: Annotated[Path, typer.Option(help="Where the checked bundles are written.")] = Path("build/gpu-check"),
) -> None:
    """Check everything that uses a GPU on this machine, and write a report. Exits 1 if a check fails."""
    from cirrus_client.engines.nvidia import this_gpu
    from cirrus_client.errors import EngineError

    try:
        gpu = this_gpu()
    except EngineError as error:
        raise EngineError(f"gpu-check needs a machine with an NVIDIA GPU: {error}") from None
    _made(out)
    from cirrus_bench.gpu_check import check_gpu  # takes many seconds, so it comes after

    report = check_gpu(gpu, work, full_size=full_size)
    _publish(report, out)
    if not report.passed:
        raise typer.Exit(1)


def _publish(report: Report, out: Path) -> None:
    """Print a report's Markdown and write its files."""
    typer.echo(report.markdown())
    written = report.write(out)
    typer.echo(f"written: {', '.join(map(str, written))}")
