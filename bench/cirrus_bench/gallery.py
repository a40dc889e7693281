"""The gallery-embedding latency: decode, encoder, target head and all of it overlapped, per engine and precision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cirrus_bench import papers
from cirrus_bench.limits import GemmRate, gemm_rates, operations_per_image, products
from cirrus_bench.measure import Machine, Timing, this_machine, time_interleaved
from cirrus_bench.models import Models, bench_models, bench_photos
from cirrus_bench.peers import start_peers
from cirrus_client.bundle import Precision
from cirrus_client.encoders import Encoder, LocalEncoder
from cirrus_client.engines import Engine, EngineName, candidates, open_graph
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.gallery.cached_encoder import CachedEncoder
from cirrus_client.gallery.feature_cache import FeatureCache
from cirrus_client.image.preprocess import Decoding, Pad, PreprocessSpec, preprocess
from cirrus_client.memory import keep_freed_memory
from cirrus_client.plans import has_plans
from cirrus_client.records import Record
from cirrus_export.gate.fidelity import agreement
from cirrus_export.gate.thresholds import cosine_min

BATCH_SIZE = 32
HEAD_ROWS = 2048
SWAP_BATCH_SIZE = 512
SWAP_IMAGES = 4096
SWEEP = (1, 4, 16, 64)
PAPER_GALLERIES = {"CIRCO": 123_403, "FashionIQ": 74_381}
TARGET_HEAD = "target head"
GALLERY_GRAPH = "gallery graph"
END_TO_END = "end to end"
PAPERS_WAY = "papers' way (PyTorch)"
EXACT = "Cirrus, fp32"
HEAD_SWAP = "Cirrus, new head on cached features"
PIXELS, FEATURES, EMBEDDING = "pixels", "image_embedding", "target_embedding"

T = TypeVar("T")
Way = tuple[str, str]
"""A row's stage, and what runs it."""
Work = Callable[[], object]


@dataclass(frozen=True)
class BenchRequest:
    """What to measure, and where photos, bundles and peers are kept. peers: install and measure them too."""

    backbone: str
    images: int
    size_px: int
    repeats: int
    work: Path
    peers: bool = True


class Row(Record):
    """One stage on one engine.

    peak_bytes: memory taken on top of what the process held before; a peer's, of its whole process. Fidelity is that of
    the embeddings to the papers' way's, a peer's to the plain encoder's: smallest cosine, and top-10 agreement of the
    images' nearest neighbours.
    """

    stage: str
    engine: str
    images_per_s: float
    spread: float
    peak_bytes: int
    gallery_seconds: dict[str, float]
    cosine_min: float | None = None
    top10_agreement: float | None = None


class SweepRow(Record):
    """The gallery graph alone, at one precision and batch size, on the fastest engine."""

    precision: Precision
    engine: str
    batch_size: int
    images_per_s: float


class GalleryReport(Record):
    """Every row of one run, and what ties the ends together.

    union_cost: the target head's time as a share of the rest of the gallery graph's. missing: peers that are not in the
    rows, and why. operations_per_image: of the gallery graph.
    """

    backbone: str
    images: int
    size_px: int
    repeats: int
    machine: Machine
    rows: tuple[Row, ...]
    sweep: tuple[SweepRow, ...]
    gemm: tuple[GemmRate, ...]
    operations_per_image: int
    union_cost: float
    missing: dict[str, str]

    def of_stage(self, stage: str) -> list[Row]:
        """Return the rows of a stage, in the order in which they were measured."""
        return [row for row in self.rows if row.stage == stage]

    def end(self, engine: str) -> Row:
        """Return the row of one way, end to end."""
        return next(row for row in self.of_stage(END_TO_END) if row.engine == engine)


def measure_gallery(request: BenchRequest) -> GalleryReport:
    """Measure all rows, interleaved, on the same files and weights, with memory kept as `cirrus embed` keeps it."""
    keep_freed_memory()
    photos = bench_photos(request.work, count=request.images, size_px=request.size_px)
    models = bench_models(request.backbone, request.work)
    stages, ends = _Stages(models, photos), _Ends(models, photos, request.work)
    multiply = products(list(models.bundles))
    sweep = tuple(_sweep(stages.encoders, stages.pixels))
    peers, missing = start_peers(request.work / "peers", models.recipe, photos) if request.peers else ([], {})
    with ExitStack() as running:
        for peer in peers:
            running.enter_context(peer)
        ways = stages.ways() | ends.ways() | {(END_TO_END, peer.title): peer.run for peer in peers}
        counts = {way: HEAD_ROWS for way in ways if way[0] == TARGET_HEAD} | {ends.swap: SWAP_IMAGES}
        timings = time_interleaved({**multiply, **ways}, request.repeats)
        plain = stages.plain_clip()
        fidelity = {way: _fidelity(ends.reference, embeddings) for way, embeddings in ends.embeddings().items()}
        fidelity |= {(END_TO_END, peer.title): _fidelity(plain, peer.embeddings()) for peer in peers}
    head = timings[stages.head].median / HEAD_ROWS
    peaks = {(END_TO_END, peer.title): peer.peak_bytes for peer in peers}
    return GalleryReport(
        backbone=request.backbone,
        images=request.images,
        size_px=request.size_px,
        repeats=request.repeats,
        machine=this_machine(),
        rows=tuple(
            _row(
                way,
                timings[way],
                counts.get(way, request.images),
                peaks.get(way, timings[way].peak_bytes),
                fidelity.get(way),
            )
            for way in ways
        ),
        sweep=sweep,
        gemm=tuple(gemm_rates({product: timings[product] for product in multiply})),
        operations_per_image=operations_per_image(models.recipe.gallery_graph()),
        union_cost=head / (timings[stages.gallery].median / request.images - head),
        missing=missing,
    )


class _Stages:
    """The parts of the job alone, each on decoded pixels or on features."""

    def __init__(self, models: Models, photos: Sequence[Path]) -> None:
        self._models = models
        self._photos = photos
        self._spec = models.bundles[Precision.FP32].spec.preprocess
        self.pixels = _decode(photos, self._spec, Decoding.EXACT)
        self.encoders = {precision: LocalEncoder(bundle) for precision, bundle in models.bundles.items()}
        exact = self.encoders[Precision.FP32]
        self.encode = partial(_run_graph, exact.graph("vision_encoder", bulk=True), PIXELS, FEATURES)
        features = np.concatenate(list(_batches(self.encode, self.pixels)))
        self._features = np.resize(features, (HEAD_ROWS, features.shape[1]))
        self.head = (TARGET_HEAD, f"fp32: {exact.graph('target_head').device}")
        self._head = partial(_run_graph, exact.graph("target_head"), FEATURES, EMBEDDING)
        self.gallery = (GALLERY_GRAPH, f"fp32: {exact.graph('gallery').device}")

    def plain_clip(self) -> NDArray[np.float32]:
        """The photos' embeddings without UNION and its padding: what peers are to give."""
        pixels = _decode(self._photos, self._spec.model_copy(update={"pad": Pad.NONE}), Decoding.EXACT)
        return np.concatenate(list(_batches(self.encode, pixels)))

    def ways(self) -> dict[Way, Work]:
        backbone = self._models.recipe.backbone
        compiled = torch.compile(backbone.encode_image)
        return {
            ("decode + preprocess", "Pillow"): partial(_decode, self._photos, self._spec, Decoding.EXACT),
            ("decode + preprocess", "fast: scaled JPEG, SIMD"): partial(
                _decode, self._photos, self._spec, Decoding.FAST
            ),
            ("encoder", "fp32: PyTorch eager"): partial(_all, _torch(backbone.encode_image), self.pixels),
            ("encoder", "fp32: PyTorch compiled"): partial(_all, _torch(compiled), self.pixels),
            **self._engines(),
            (TARGET_HEAD, "fp32: PyTorch eager"): partial(
                _all, _torch(self._models.recipe.target_head), self._features
            ),
            self.head: partial(_all, self._head, self._features),
            **self._galleries(),
        }

    def _engines(self) -> dict[Way, Work]:
        """The encoder on every engine that runs it, at every precision."""
        ways: dict[Way, Work] = {}
        for precision, bundle in self._models.bundles.items():
            names = [*candidates(precision), *([EngineName.TENSORRT] if has_plans(bundle) else [])]
            for name in names:
                engine = open_graph(bundle, "vision_encoder", engine=name, bulk=True)
                run = partial(_run_graph, engine, PIXELS, FEATURES)
                ways["encoder", f"{precision}: {engine.device}"] = partial(_all, run, self.pixels)
        return ways

    def _galleries(self) -> dict[Way, Work]:
        """Encoder and UNION in one graph, which is what a gallery takes, on the engine that `auto` takes."""
        graphs = {precision: encoder.graph("gallery") for precision, encoder in self.encoders.items()}
        return {
            (GALLERY_GRAPH, f"{precision}: {graph.device}"): partial(
                _all, partial(_run_graph, graph, PIXELS, EMBEDDING), self.pixels
            )
            for precision, graph in graphs.items()
        }


class _Ends:
    """The whole job, from files to embeddings, in each way; what each has made last is kept."""

    def __init__(self, models: Models, photos: Sequence[Path], work: Path) -> None:
        self._models = models
        self._photos = photos
        self._work = work
        self.swap: Way = (END_TO_END, HEAD_SWAP)
        self.reference: NDArray[np.float32] = np.empty(0, dtype=np.float32)
        shutil.rmtree(work / "features", ignore_errors=True)
        self._cache = FeatureCache(work / "features", models.bundles[Precision.FP32])
        self._many = _linked(photos, work / f"photos-linked-{SWAP_IMAGES}")

    def ways(self) -> dict[Way, Work]:
        ways: dict[Way, Work] = {(END_TO_END, PAPERS_WAY): self._papers_way}
        for precision, bundle in self._models.bundles.items():
            ways[END_TO_END, f"Cirrus, {precision}"] = self._embed(f"Cirrus, {precision}", LocalEncoder(bundle))
        for precision, bundle in self._models.bundles.items():
            title = f"Cirrus, {precision}, fast decoding"
            ways[END_TO_END, title] = self._embed(title, LocalEncoder(bundle, decoding=Decoding.FAST))
        ways[self.swap] = self._head_swap
        return ways

    def embeddings(self) -> dict[Way, NDArray[np.float32]]:
        """What each of Cirrus's ways has made of the photos, each photo once."""
        found = {path.name: read_gallery(path).embeddings for path in (self._work / "galleries").iterdir()}
        return {(END_TO_END, name): embeddings[: len(self._photos)] for name, embeddings in found.items()}

    def _papers_way(self) -> None:
        spec = self._models.bundles[Precision.FP32].spec.preprocess
        self.reference = papers.embed(self._models.recipe, self._photos, spec).numpy()

    def _embed(self, title: str, encoder: LocalEncoder) -> Work:
        return lambda: self._fresh(title, self._photos[0].parent, encoder, batch_size=BATCH_SIZE)

    def _head_swap(self) -> None:
        """What `cirrus embed --cache` does for a new head; the warm-up round fills the cache."""
        cached = CachedEncoder(self._models.bundles[Precision.FP32], self._cache)
        self._fresh(HEAD_SWAP, self._many, cached, prepare=cached.prepare_file, batch_size=SWAP_BATCH_SIZE)

    def _fresh(self, title: str, photos: Path, encoder: Encoder, **options: Any) -> None:
        out = self._work / "galleries" / title
        shutil.rmtree(out, ignore_errors=True)
        embed_gallery(photos, out, encoder, show_progress=False, **options)


def _linked(photos: Sequence[Path], folder: Path) -> Path:
    """Make a folder of SWAP_IMAGES names for the photos, in rounds: enough files for a job of well under a second."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(SWAP_IMAGES):
        (folder / f"{number:06d}.jpg").hardlink_to(photos[number % len(photos)])
    return folder


def _sweep(encoders: Mapping[Precision, LocalEncoder], pixels: NDArray[np.float32]) -> Iterator[SweepRow]:
    """The gallery graph by batch size, each on the engine that `auto` takes."""
    for precision, encoder in encoders.items():
        engine = encoder.graph("gallery")
        run = partial(_run_graph, engine, PIXELS, EMBEDDING)
        ways = {size: partial(_all, run, pixels[: max(SWEEP)], size) for size in SWEEP}
        for size, timing in time_interleaved(ways, 3).items():
            rate = min(max(SWEEP), len(pixels)) / timing.median
            yield SweepRow(precision=precision, engine=engine.device, batch_size=size, images_per_s=rate)


def _row(way: Way, timing: Timing, images: int, peak_bytes: int, fidelity: tuple[float, float] | None) -> Row:
    rate = images / timing.median
    cosine, agreeing = fidelity or (None, None)
    return Row(
        stage=way[0],
        engine=way[1],
        images_per_s=rate,
        spread=timing.spread,
        peak_bytes=peak_bytes,
        gallery_seconds={name: count / rate for name, count in PAPER_GALLERIES.items()},
        cosine_min=cosine,
        top10_agreement=agreeing,
    )


def _fidelity(reference: NDArray[np.float32], embeddings: NDArray[np.float32]) -> tuple[float, float]:
    """Smallest cosine, and how many of every image's ten nearest neighbours are the same."""
    rankings = [_neighbours(vectors) for vectors in (reference, embeddings)]
    return cosine_min(reference, embeddings), agreement(*rankings)


def _neighbours(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :10]


def _torch(function: Callable[[torch.Tensor], object]) -> Callable[[NDArray[np.float32]], object]:
    def run(batch: NDArray[np.float32]) -> object:
        with torch.no_grad():
            return function(torch.from_numpy(batch))

    return run


def _run_graph(engine: Engine, given: str, wanted: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = engine({given: batch})[wanted]
    return answer


def _decode(photos: Sequence[Path], spec: PreprocessSpec, decoding: Decoding) -> NDArray[np.float32]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(lambda path: preprocess(path.read_bytes(), spec, decoding), photos)))


def _all(function: Callable[[NDArray[np.float32]], object], rows: NDArray[np.float32], size: int = BATCH_SIZE) -> None:
    for _ in _batches(function, rows, size):
        pass


def _batches(
    function: Callable[[NDArray[np.float32]], T], rows: NDArray[np.float32], size: int = BATCH_SIZE
) -> Iterator[T]:
    return (function(rows[start : start + size]) for start in range(0, len(rows), size))
