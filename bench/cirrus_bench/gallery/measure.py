"""Measure the gallery bench: all cases in one run, interleaved, on the same files and weights."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cirrus_bench.ceiling import operations_per_image, peak_rates, products
from cirrus_bench.gallery import case
from cirrus_bench.gallery.case import Case, Stage
from cirrus_bench.gallery.end_to_end import EndToEnd
from cirrus_bench.gallery.report import CACHED_IMAGES, HEAD_ROWS, PAPER_GALLERIES, Fidelity, GalleryReport, Row
from cirrus_bench.gallery.stages import Stages
from cirrus_bench.measure import Timing, this_machine, time_interleaved
from cirrus_bench.peers import start_peers
from cirrus_bench.subjects import bench_photos, bench_subjects
from cirrus_client.agreement import agreement, cosine_min
from cirrus_client.memory import keep_freed_memory


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    backbone: an open_clip model; its weights are random. images, size_px: the rendered photos and their longer side.
    repeats: rounds; medians are reported. work: where photos, bundles and peers are kept for the next run. peers:
    install other tools and measure them as well.
    """

    backbone: str
    images: int
    size_px: int
    repeats: int
    work: Path
    peers: bool = True


def measure_gallery(request: BenchRequest) -> GalleryReport:
    """Measure every case, and return the report. Memory that is freed is kept, as `cirrus embed` does."""
    keep_freed_memory()
    photos = bench_photos(request.work, count=request.images, size_px=request.size_px)
    subjects = bench_subjects(request.backbone, request.work)
    stages, ends = Stages(subjects, photos), EndToEnd(subjects, photos, request.work)
    multiply = products(list(subjects.bundles))
    sweep = tuple(stages.sweep())
    peers, missing = start_peers(request.work / "peers", subjects.recipe, photos) if request.peers else ([], {})
    with ExitStack() as running:
        for peer in peers:
            running.enter_context(peer)
        cases = stages.cases() | ends.cases() | {case.peer(peer.title): peer.run for peer in peers}
        timings = time_interleaved({**multiply, **cases}, request.repeats)
        reference, plain = ends.baseline_embeddings(), stages.plain_clip()
        fidelity = {measured: _fidelity(reference, found) for measured, found in ends.embeddings().items()}
        fidelity |= {case.peer(peer.title): _fidelity(plain, peer.embeddings()) for peer in peers}
    peaks = {case.peer(peer.title): peer.peak_bytes for peer in peers}
    head_s = timings[stages.head_case].median / HEAD_ROWS
    gallery_s = timings[stages.gallery_case].median / request.images
    return GalleryReport(
        backbone=request.backbone,
        images=request.images,
        size_px=request.size_px,
        repeats=request.repeats,
        machine=this_machine(),
        rows=tuple(
            _row(
                measured,
                timings[measured],
                images=_images(measured, request),
                peak_bytes=peaks.get(measured, timings[measured].peak_bytes),
                fidelity=fidelity.get(measured),
            )
            for measured in cases
        ),
        sweep=sweep,
        peak_rates=tuple(peak_rates({product: timings[product] for product in multiply})),
        operations_per_image=operations_per_image(subjects.recipe.gallery_graph()),
        union_cost=head_s / (gallery_s - head_s),
        missing=missing,
    )


def _images(measured: Case, request: BenchRequest) -> int:
    """Return how many images one run of a case is for."""
    if measured.stage is Stage.TARGET_HEAD:
        return HEAD_ROWS
    return CACHED_IMAGES if measured == case.CACHED_FEATURES else request.images


def _row(measured: Case, timing: Timing, *, images: int, peak_bytes: int, fidelity: Fidelity | None) -> Row:
    rate = images / timing.median
    return Row(
        **dict(measured),
        images_per_s=rate,
        spread=timing.spread,
        peak_bytes=peak_bytes,
        gallery_seconds={name: count / rate for name, count in PAPER_GALLERIES.items()},
        fidelity=fidelity,
    )


def _fidelity(reference: NDArray[np.float32], embeddings: NDArray[np.float32]) -> Fidelity:
    rankings = [_neighbours(vectors) for vectors in (reference, embeddings)]
    return Fidelity(cosine_min=cosine_min(reference, embeddings), top10_agreement=agreement(*rankings))


def _neighbours(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rows of each vector's ten nearest neighbours, int64 [N, 10]."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :10]
