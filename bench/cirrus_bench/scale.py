"""Embedding on a Ray cluster with one and more workers, each with one core of its own."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO, ClassVar

import numpy as np

from cirrus_bench.measure import this_machine
from cirrus_bench.report import Report
from cirrus_client.bundle import Bundle, Precision, Similarity, SpaceSpec
from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.protocol import Encoder
from cirrus_client.gallery import Embedded, GalleryWriter, ImageFile, Recollection, Shard, embed_gallery
from cirrus_client.gallery.cluster import connected
from cirrus_client.gallery.cluster_tools import BundleTools
from cirrus_client.gallery.source import AnySource
from cirrus_client.gallery.work import DoneShard, OpenedPart, Unit, Workforce, WorkOptions
from cirrus_client.records import Record

_SHARD = 16
_COMMITTED, _DIM, _COMMITS = 10_000, 512, 5
_held: list[IO[str]] = []
log = logging.getLogger(__name__)


class ScaleRow(Record):
    """Workers of one core each, and their rate in each round, without the time in which they start."""

    workers: int
    images_per_s: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median rate in images per second."""
        return median(self.images_per_s)


class ScaleReport(Report):
    """All rows of one run, the row of one worker first.

    load: the machine's load average before the run, per core. committed_per_s: images of one vector of width 512 that
    the driver writes to a gallery per second, in shards of 10,000.
    """

    file_name: ClassVar[str] = "scale"

    backbone: str
    precision: Precision
    images: int
    size_px: int
    load: float
    committed_per_s: float
    rows: tuple[ScaleRow, ...]

    def efficiency(self, row: ScaleRow) -> float:
        """Return the rate of a row per worker, as a share of the rate of one worker."""
        return row.median / row.workers / self.rows[0].median

    def markdown(self) -> str:
        """Render the report as Markdown."""
        lines = [
            "# Embedding on a Ray cluster",
            "",
            f"{self.backbone} at {self.precision}, {self.images} JPEG photos of {self.size_px:,} px, shards of "
            f"{_SHARD}, medians of {len(self.rows[0].images_per_s)} interleaved rounds. Every worker has one core, to "
            "which it is pinned. The rate counts from the first result of a run, so that workers have started.",
            "",
            "| workers | images/s | slowest to fastest round | efficiency |",
            "|--:|--:|--:|--:|",
            *(
                f"| {row.workers} | {row.median:.2f} | {min(row.images_per_s):.2f} to {max(row.images_per_s):.2f} "
                f"| {self.efficiency(row):.0%} |"
                for row in self.rows
            ),
            "",
            f"The driver commits {self.committed_per_s:,.0f} images/s (width {_DIM}, shards of {_COMMITTED:,}).",
            "",
            f"Load of the machine before the run, per core: {self.load:.2f}. {self.machine}",
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class PinnedTools:
    """Tools of a worker that pins itself to a core that no other worker has. locks: a folder with a file per core."""

    tools: BundleTools
    locks: Path

    def __call__(self, threads: int | None) -> tuple[Encoder, Recollection | None]:
        """Pin this process, and return its tools."""
        for core in sorted(os.sched_getaffinity(0)):
            lock = (self.locks / str(core)).open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                continue
            _held.append(lock)  # until this process ends
            os.sched_setaffinity(0, {core})
            break
        return self.tools(threads)


def measure_scale(
    bundle: Bundle, work: Path, *, images: int, size_px: int, rounds: int, workers: Sequence[int]
) -> ScaleReport:
    """Embed photos with each number of workers in turn on a cluster of this machine."""
    from cirrus_bench.subjects import bench_photos  # brings torch, which workers do not need

    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    photos = bench_photos(work, count=images, size_px=size_px)[0].parent
    rates: dict[int, list[float]] = {number: [] for number in workers}
    with connected("local", cores=1) as cluster, TemporaryDirectory() as scratch:
        for turn in range(rounds):
            for number in workers:
                locks = Path(scratch) / f"locks-{turn}-{number}"
                locks.mkdir()
                clock = _Clock()
                few = replace(cluster, workers=number)
                tools = PinnedTools(BundleTools(bundle.root.resolve(), "onnxruntime"), locks)
                embed_gallery(
                    photos,
                    Path(scratch) / f"{turn}-{number}",
                    LocalEncoder(bundle),
                    workforce=clock.around(few.workforce(tools)),
                    shard_size=_SHARD,
                    batch_size=_SHARD,
                )
                rates[number].append(clock.images_per_s)
                log.info("%d workers: %.2f images/s", number, clock.images_per_s)
    return ScaleReport(
        backbone=bundle.spec.backbone,
        precision=bundle.spec.precision,
        images=images,
        size_px=size_px,
        load=load,
        committed_per_s=_committed_per_s(),
        rows=tuple(ScaleRow(workers=number, images_per_s=tuple(found)) for number, found in rates.items()),
        machine=this_machine(),
    )


def _committed_per_s() -> float:
    space = SpaceSpec.of({"bench": "scale"}, dim=_DIM, vectors=1, similarity=Similarity.COSINE)
    rows = np.random.default_rng(0).standard_normal((_COMMITTED, _DIM), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    digests = tuple(hashlib.sha256(row.tobytes()).hexdigest() for row in rows)
    with TemporaryDirectory() as scratch:
        writer = GalleryWriter.open(Path(scratch) / "gallery", images="/photos", space=space)
        started = time.perf_counter()
        for number in range(_COMMITS):
            files = tuple(ImageFile(f"{number}/{row:06d}.jpg", 100_000, row) for row in range(_COMMITTED))
            writer.commit(Shard(files), Embedded(rows, files, digests=digests))
        return _COMMITS * _COMMITTED / (time.perf_counter() - started)


class _Clock:
    """Times the results of a workforce."""

    def __init__(self) -> None:
        self._came: list[tuple[float, int]] = []

    def around(self, workforce: Workforce) -> Workforce:
        def run(
            source: AnySource, units: Sequence[Unit], options: WorkOptions, on_done: Callable[[int], object]
        ) -> Iterator[OpenedPart | DoneShard]:
            for result in workforce(source, units, options, on_done):
                if isinstance(result, DoneShard):
                    self._came.append((time.perf_counter(), len(result.shard.files)))
                yield result

        return run

    @property
    def images_per_s(self) -> float:
        (start, _), *later = self._came
        return sum(images for _, images in later) / (later[-1][0] - start)
