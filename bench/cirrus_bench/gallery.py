"""The gallery-embedding latency: decode, encoder, target head and all of it overlapped, per engine."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cirrus_bench import papers
from cirrus_bench.measure import Machine, Timing, this_machine, time_interleaved
from cirrus_client.bundle import Bundle, Contract
from cirrus_client.encoders import LocalEncoder
from cirrus_client.feature_cache import CachedEncoder, FeatureCache
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.preprocess import preprocess
from cirrus_export.demo.catalogue import write_photos
from cirrus_export.demo.probe import rendered_probe
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.recipes.transagg_union import TransAggUnion

BATCH_SIZE = 32
SWAP_BATCH_SIZE = 512
PAPER_GALLERIES = {"CIRCO": 123_403, "FashionIQ": 74_381}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchRequest:
    """What to measure, and where photos and bundle are kept between runs."""

    backbone: str
    images: int
    size_px: int
    repeats: int
    work: Path


class Row(Contract):
    """One stage on one engine."""

    stage: str
    engine: str
    images_per_s: float
    spread: float
    gallery_seconds: dict[str, float]


class GalleryReport(Contract):
    """Every row of one run, and what ties the ends together.

    speedup: Cirrus against the papers' way. head_swap: embedding again for a new head on cached features, against
    embedding from the files. union_cost: the target head's time as a share of the encoder's. Cosines are the smallest
    between the embeddings: of the papers' way and Cirrus, and of Cirrus from the files and from cached features.
    """

    backbone: str
    images: int
    size_px: int
    repeats: int
    machine: Machine
    rows: tuple[Row, ...]
    speedup: float
    head_swap: float
    union_cost: float
    cosine_min: float
    cached_cosine_min: float


def measure_gallery(request: BenchRequest) -> GalleryReport:
    """Measure all rows, interleaved, on the same files and weights."""
    photos = _photos(request)
    folder = photos[0].parent
    bundle, recipe = _model(request)
    spec = bundle.spec.preprocess
    encoder = LocalEncoder(bundle)
    vision, head = (encoder.graph(name) for name in ("vision_encoder", "target_head"))
    gallery = encoder.graph("gallery")
    pixels = _decode(photos, bundle)
    features = np.concatenate(list(_batches(lambda batch: vision({"pixels": batch})["image_embedding"], pixels)))
    from_files, from_cache = request.work / "gallery", request.work / "gallery-cached"
    shutil.rmtree(request.work / "features", ignore_errors=True)
    cache = FeatureCache(request.work / "features", bundle)

    def end_to_end() -> None:
        shutil.rmtree(from_files, ignore_errors=True)
        embed_gallery(folder, from_files, encoder, batch_size=BATCH_SIZE, show_progress=False)

    def head_swap() -> None:
        """What `cirrus embed --cache` does for a new head; the warm-up round fills the cache."""
        shutil.rmtree(from_cache, ignore_errors=True)
        cached = CachedEncoder(bundle, cache)
        embed_gallery(
            folder, from_cache, cached, prepare=cached.prepare_file, batch_size=SWAP_BATCH_SIZE, show_progress=False
        )

    def torch_stage(function: Callable[[torch.Tensor], object]) -> Callable[[NDArray[np.float32]], object]:
        def run(batch: NDArray[np.float32]) -> object:
            with torch.no_grad():
                return function(torch.from_numpy(batch))

        return run

    papers_key, swap_key = (
        ("end to end", "papers' way (PyTorch)"),
        ("end to end", "Cirrus, new head on cached features"),
    )
    ort, eager = vision.device, "PyTorch eager"
    cirrus_key = ("end to end", f"Cirrus ({ort})")
    ways: dict[tuple[str, str], Callable[[], object]] = {
        ("decode + preprocess", "Pillow threads"): lambda: _decode(photos, bundle),
        ("encoder", eager): lambda: list(_batches(torch_stage(recipe.backbone.encode_image), pixels)),
        ("encoder", ort): lambda: list(_batches(lambda batch: vision({"pixels": batch}), pixels)),
        ("target head", eager): lambda: list(_batches(torch_stage(recipe.target_head), features)),
        ("target head", ort): lambda: list(_batches(lambda batch: head({"image_embedding": batch}), features)),
        ("encoder + UNION, fused", ort): lambda: list(_batches(lambda batch: gallery({"pixels": batch}), pixels)),
        papers_key: lambda: papers.embed(recipe, photos, spec),
        cirrus_key: end_to_end,
        swap_key: head_swap,
    }
    timings = time_interleaved(ways, request.repeats)
    reference = papers.embed(recipe, photos, spec).numpy()
    mine, swapped = (read_gallery(out).embeddings for out in (from_files, from_cache))
    cirrus = timings[cirrus_key]
    head_time, encoder_time = timings["target head", ort], timings["encoder", ort]
    return GalleryReport(
        backbone=request.backbone,
        images=request.images,
        size_px=request.size_px,
        repeats=request.repeats,
        machine=this_machine(),
        rows=tuple(_row(*key, timing, request.images) for key, timing in timings.items()),
        speedup=timings[papers_key].median / cirrus.median,
        head_swap=cirrus.median / timings[swap_key].median,
        union_cost=head_time.median / encoder_time.median,
        cosine_min=float((reference * mine).sum(axis=1).min()),
        cached_cosine_min=float((mine * swapped).sum(axis=1).min()),
    )


def _row(stage: str, engine: str, timing: Timing, images: int) -> Row:
    rate = images / timing.median
    seconds = {name: count / rate for name, count in PAPER_GALLERIES.items()}
    return Row(stage=stage, engine=engine, images_per_s=rate, spread=timing.spread, gallery_seconds=seconds)


def _photos(request: BenchRequest) -> list[Path]:
    folder = request.work / f"photos-{request.images}-{request.size_px}px"
    existing = sorted(folder.glob("*.jpg"))
    if len(existing) == request.images:
        return existing
    return write_photos(folder, count=request.images, size_px=request.size_px, seed=1)


def _model(request: BenchRequest) -> tuple[Bundle, TransAggUnion]:
    """The bundle, exported on the first run, and its torch original with the same weights."""
    wanted = ExportRequest(
        recipe="transagg-union",
        backbone=request.backbone,
        pretrained="random",
        head="random",
        out=request.work / f"bundle-{request.backbone}",
    )
    recipe = build_recipe(wanted)
    assert isinstance(recipe, TransAggUnion)
    if (wanted.out / "bundle.json").is_file():
        return Bundle.open(wanted.out), recipe
    log.info("exporting %s for the bench", request.backbone)
    return export(wanted, rendered_probe(queries=16, gallery=48)), recipe


def _decode(photos: list[Path], bundle: Bundle) -> NDArray[np.float32]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda path: preprocess(path.read_bytes(), bundle.spec.preprocess), photos)
        return np.stack(list(decoded))


def _batches(function: Callable[[NDArray[np.float32]], object], rows: NDArray[np.float32]) -> map[object]:
    starts = range(0, len(rows), BATCH_SIZE)
    return map(function, (rows[start : start + BATCH_SIZE] for start in starts))
