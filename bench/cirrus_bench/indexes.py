"""Every kind of index over a large gallery: memory, time to build, speed, and agreement on queries between images."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from cirrus_bench.measure import reset_peak, status_bytes, this_machine, time_interleaved
from cirrus_bench.report import Report
from cirrus_bench.search import synthetic_space
from cirrus_client.gallery import Embedded, GalleryWriter, ImageFile, Shard, read_gallery
from cirrus_client.index import BuildOptions, QuerySample, SearchKind, Storage, build_index, open_index
from cirrus_client.index.figures import IndexFigures
from cirrus_client.records import Record

_PER_CENTRE, _INNER_DIM = 25, 48
_SHARD_BYTES = 128 * 2**20
_QUERIES, _TUNING_QUERIES, _K, _ROUNDS = 64, 1024, 10, 5
_CASES = (
    (SearchKind.EXACT, Storage.FLOAT32),
    (SearchKind.EXACT, Storage.FLOAT16),
    (SearchKind.APPROXIMATE, Storage.FLOAT32),
    (SearchKind.HNSW, Storage.FLOAT32),
    (SearchKind.RABITQ, Storage.FLOAT32),
)
T = TypeVar("T")
log = logging.getLogger(__name__)


class Shape(Record):
    """The shape of a gallery."""

    images: int
    vectors: int
    dim: int


class IndexBenchReport(Report):
    """All cases of one run."""

    file_name: ClassVar[str] = "index"

    rows: tuple[IndexFigures, ...]

    def markdown(self) -> str:
        """Render the report as Markdown."""
        lines = [
            "# Indexes of large galleries",
            "",
            f"The {_K} best of synthetic unit vectors, {_PER_CENTRE} around each centre; a query is the sum of two and "
            f"noise. Agreement is measured on {_TUNING_QUERIES // 2} queries that the index was not tuned on. "
            "Memory is what a process holds that opened the index and searched: its own, and that of mapped files, "
            "which the system may take back. One query is asked alone, then 64 at once, all indexes in turn.",
            "",
            "| images | vectors x width | kind | storage | build, s | build's peak, GiB | own, GiB | mapped, GiB "
            "| one query, ms | queries/s | top-10 agreement |",
            "|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|",
            *map(_line, self.rows),
            "",
            str(self.machine),
        ]
        return "\n".join(lines) + "\n"


def measure_indexes(shapes: Sequence[Shape], work: Path) -> IndexBenchReport:
    """Build, open and search an index of every kind over a gallery of each shape. work: where they are written."""
    rows = [row for shape in shapes for row in _measure(shape, work)]
    return IndexBenchReport(rows=tuple(rows), machine=this_machine())


def _line(row: IndexFigures) -> str:
    gib = [f"{size / 2**30:.2f}" for size in (row.build_peak_bytes, row.own_bytes, row.mapped_bytes)]
    return (
        f"| {row.images:,} | {row.vectors} x {row.dim} | {row.kind} | {row.storage} | {row.build_s:,.0f} "
        f"| {' | '.join(gib)} | {row.one_query_ms:.2f} | {row.queries_per_s:,.0f} | {row.agreement:.1%} |"
    )


def _measure(shape: Shape, work: Path) -> list[IndexFigures]:
    root = work / f"index-{shape.images}-{shape.vectors}-{shape.dim}"
    queries = _write_gallery(root / "gallery", shape)
    built, held = {}, {}
    for kind, storage in _CASES:
        out = root / f"{kind}-{storage}"
        log.info("%s: building", out)
        built[kind, storage] = _alone(partial(_build, root / "gallery", out, kind, storage, queries))
        held[kind, storage] = _alone(partial(_held, out, queries))
    opened = {case: open_index(root / f"{case[0]}-{case[1]}").index for case in _CASES}
    many = time_interleaved(
        {case: partial(index.search, queries[:_QUERIES], _K) for case, index in opened.items()}, _ROUNDS
    )
    one = time_interleaved(
        {case: partial(_one_by_one, index.search, queries[:_QUERIES]) for case, index in opened.items()}, _ROUNDS
    )
    return [
        IndexFigures(
            **shape.model_dump(),
            kind=kind,
            storage=storage,
            build_s=built[kind, storage][0],
            build_peak_bytes=built[kind, storage][1],
            own_bytes=held[kind, storage][0],
            mapped_bytes=held[kind, storage][1],
            one_query_ms=1e3 * one[kind, storage].median / _QUERIES,
            queries_per_s=_QUERIES / many[kind, storage].median,
            agreement=built[kind, storage][2],
        )
        for kind, storage in _CASES
    ]


def _alone(job: Callable[[], T]) -> T:
    """Run a job in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(job).result()


def _build(
    gallery: Path, out: Path, kind: SearchKind, storage: Storage, queries: NDArray[np.float32]
) -> tuple[float, int, float]:
    """Return the seconds that building takes, the most memory on top of the process's, and the agreement."""
    sample = QuerySample(queries, "sums of two images")
    before, start = reset_peak(), time.perf_counter()
    manifest = build_index(read_gallery(gallery), out, options=BuildOptions(kind, storage, sample))
    seconds = time.perf_counter() - start
    return seconds, status_bytes("VmHWM") - before, 1.0 if manifest.agreement is None else manifest.agreement.share


def _held(out: Path, queries: NDArray[np.float32]) -> tuple[int, int]:
    """Return what an opened and searched index holds: its own memory and that of mapped files, in bytes."""
    before = [status_bytes(field) for field in ("RssAnon", "RssFile")]
    saved = open_index(out)
    saved.index.search(queries[:_QUERIES], _K)
    own, mapped = (status_bytes(field) for field in ("RssAnon", "RssFile"))
    return own - before[0], mapped - before[1]


def _one_by_one(search: Callable[[NDArray[np.float32], int], object], queries: NDArray[np.float32]) -> None:
    for number in range(len(queries)):
        search(queries[number : number + 1], _K)


def _write_gallery(root: Path, shape: Shape) -> NDArray[np.float32]:
    """Write a gallery, unless it is there, and return queries of its space, float32 [Q, D]."""
    space = synthetic_space(shape.dim, shape.vectors)
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((shape.images * shape.vectors // _PER_CENTRE, shape.dim), dtype=np.float32)
    directions = generator.standard_normal((_INNER_DIM, shape.dim), dtype=np.float32) / np.sqrt(_INNER_DIM)

    def draw(rows: int, seed: int) -> NDArray[np.float32]:
        own = np.random.default_rng([shape.images, seed])
        values = centres[own.integers(0, len(centres), rows)]
        values += 0.7 * own.standard_normal((rows, _INNER_DIM), dtype=np.float32) @ directions
        values += 0.25 * own.standard_normal((rows, shape.dim), dtype=np.float32)
        return _unit(values)

    writer = GalleryWriter.open(root, images="/photos", space=space)
    rows = max(1, _SHARD_BYTES // (4 * shape.vectors * shape.dim))
    if len(read_gallery(root, allow_empty=True)) != shape.images:
        for number, start in enumerate(range(0, shape.images, rows)):
            count = min(rows, shape.images - start)
            files = tuple(ImageFile(f"{start + row:09d}.jpg", 1, 1) for row in range(count))
            values = draw(count * shape.vectors, number).reshape(count, *space.item_shape)
            writer.commit(Shard(files), Embedded(values, files))
    first, second = draw(2 * _TUNING_QUERIES, 0).reshape(2, _TUNING_QUERIES, shape.dim)
    noise = _unit(generator.standard_normal(first.shape, dtype=np.float32))
    return _unit(first + 0.5 * second + 0.3 * noise)


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return unit
