"""Search: Cirrus's index against bare FAISS, exact and approximate, with one vector an image and with several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from cirrus_bench.measure import Machine, this_machine, time_interleaved
from cirrus_bench.report_files import write_report_files
from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.index import BuildOptions, SearchKind
from cirrus_client.index.faiss_build import index_in_memory
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.records import Record
from cirrus_export.gate.fidelity import agreement, top

_DIM, _VECTORS = 256, 32
_QUERIES, _K, _ROUNDS = 64, 50, 5
_CLUSTERS = 512
_TOP = 10

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


class SearchRow(Record):
    """One way to search. agreement: of its top ten with exact search's."""

    way: str
    images: int
    vectors: int
    queries_per_s: float
    one_query_ms: float
    agreement: float


class SearchReport(Record):
    """All ways, in one run."""

    rows: tuple[SearchRow, ...]
    machine: Machine


def measure_search(*, single: int, multi: int) -> SearchReport:
    """Measure search over `single` images of one vector, and `multi` images of 32."""
    rows = [*_measure(single, 1), *_measure(multi, _VECTORS)]
    return SearchReport(rows=tuple(rows), machine=this_machine())


def write_report(report: SearchReport, out: Path) -> None:
    """Write `search.json` and `search.md`."""
    write_report_files(report, markdown(report), out, "search")


def markdown(report: SearchReport) -> str:
    """Return the report as Markdown."""
    lines = [
        "# Search",
        "",
        f"The best {_K}, clustered unit vectors of width {_DIM}, {_QUERIES} queries at once and one alone. "
        "Bare FAISS answers with vectors; where an image has several, Cirrus answers with images.",
        "",
        "| way | images | vectors an image | queries/s | one query, ms | top-10 agreement with exact |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| {row.way} | {row.images:,} | {row.vectors} | {row.queries_per_s:,.0f} | {row.one_query_ms:.2f} "
            f"| {row.agreement:.1%} |"
            for row in report.rows
        ),
        "",
        str(report.machine),
    ]
    return "\n".join(lines) + "\n"


def _measure(images: int, vectors: int) -> list[SearchRow]:
    embeddings, queries = _clustered(images, vectors)
    space = SpaceSpec.of(
        {"bench": "search"},
        dim=_DIM,
        vectors=vectors,
        similarity=Similarity.COSINE if vectors == 1 else Similarity.MAX_COSINE,
    )
    ways = {
        "FAISS IndexFlatIP, bare": _bare(embeddings),
        **{
            f"Cirrus, {kind}": _ours(index_in_memory(space, embeddings, options=BuildOptions(kind=kind))[0])
            for kind in _kinds(vectors)
        },
    }
    many = time_interleaved({way: partial(search, queries) for way, search in ways.items()}, _ROUNDS)
    one = time_interleaved({way: partial(search, queries[:1]) for way, search in ways.items()}, _ROUNDS)
    truth = top(queries, embeddings)
    return [
        SearchRow(
            way=way,
            images=images,
            vectors=vectors,
            queries_per_s=_QUERIES / many[way].median,
            one_query_ms=1e3 * one[way].median,
            agreement=agreement(truth, search(queries)[:, :_TOP] // (vectors if way.startswith("FAISS") else 1)),
        )
        for way, search in ways.items()
    ]


def _kinds(vectors: int) -> list[SearchKind]:
    """Search over several vectors an image is exact."""
    return list(SearchKind) if vectors == 1 else [SearchKind.EXACT]


def _bare(embeddings: NDArray[np.float32]) -> Search:
    """FAISS alone: the best vectors, whichever images they are of."""
    index = faiss.IndexFlatIP(_DIM)
    index.add(embeddings.reshape(-1, _DIM))
    return lambda queries: index.search(queries, _K)[1]


def _ours(index: FaissIndex) -> Search:
    return lambda queries: index.search(queries, _K).rows


def _clustered(images: int, vectors: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors around common centres, as a gallery's are, and queries like them."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((_CLUSTERS, _DIM), dtype=np.float32)

    def draw(*shape: int) -> NDArray[np.float32]:
        rows = centres[generator.integers(0, _CLUSTERS, shape)]
        rows += 0.7 * generator.standard_normal(rows.shape, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    return draw(images) if vectors == 1 else draw(images, vectors), draw(_QUERIES)
