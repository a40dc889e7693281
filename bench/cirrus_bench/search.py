"""Search by Cirrus's index compared with bare FAISS: exact and approximate, one and several vectors per image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from cirrus_bench.measure import this_machine, time_interleaved
from cirrus_bench.report import Report
from cirrus_client.agreement import agreement, top
from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.index import BuildOptions, SearchKind
from cirrus_client.index.faiss_build import index_in_memory
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.records import Record

_DIM, _VECTORS = 256, 32
_QUERIES, _K, _ROUNDS = 64, 50, 5
_CLUSTERS = 512
_TOP = 10

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


class SearchCase(Record):
    """What is measured. kind: of Cirrus's index; None is FAISS's own exact index, without Cirrus."""

    kind: SearchKind | None = None

    @property
    def title(self) -> str:
        """The name of the case in tables."""
        return "FAISS IndexFlatIP, bare" if self.kind is None else f"Cirrus, {self.kind}"


class SearchRow(SearchCase):
    """One case and its figures.

    vectors: per image. queries_per_s: of queries asked together. one_query_ms: of a query asked alone. agreement: the
    share of exact search's ten best images that are found.
    """

    images: int
    vectors: int
    queries_per_s: float
    one_query_ms: float
    agreement: float


class SearchReport(Report):
    """All cases of one run."""

    file_name: ClassVar[str] = "search"

    rows: tuple[SearchRow, ...]

    def markdown(self) -> str:
        """Render the report as Markdown."""
        lines = [
            "# Search",
            "",
            f"The {_K} best of clustered unit vectors of width {_DIM}, for {_QUERIES} queries at once and for one "
            "alone. Bare FAISS returns vectors; Cirrus returns images, also where an image has several vectors.",
            *self.machine.on_cpu("Bare FAISS"),
            "",
            "| index | images | vectors per image | queries/s | one query, ms | top-10 agreement with exact |",
            "|---|--:|--:|--:|--:|--:|",
            *(
                f"| {row.title} | {row.images:,} | {row.vectors} | {row.queries_per_s:,.0f} | {row.one_query_ms:.2f} "
                f"| {row.agreement:.1%} |"
                for row in self.rows
            ),
            "",
            str(self.machine),
        ]
        return "\n".join(lines) + "\n"


def measure_search(*, single: int, multi: int) -> SearchReport:
    """Measure search over `single` images of one vector, and `multi` images of 32."""
    rows = [*_measure(single, 1), *_measure(multi, _VECTORS)]
    return SearchReport(rows=tuple(rows), machine=this_machine())


def synthetic_space(dim: int, vectors: int) -> SpaceSpec:
    """Return a space of vectors that no bundle makes. vectors: per image."""
    similarity = Similarity.COSINE if vectors == 1 else Similarity.MAX_COSINE
    return SpaceSpec.of({"bench": "synthetic"}, dim=dim, vectors=vectors, similarity=similarity)


def _measure(images: int, vectors: int) -> list[SearchRow]:
    embeddings, queries = _clustered(images, vectors)
    space = synthetic_space(_DIM, vectors)
    searches = {
        SearchCase(): _faiss_alone(embeddings),
        **{SearchCase(kind=kind): _cirrus(_index(space, embeddings, kind)) for kind in _kinds(vectors)},
    }
    many = time_interleaved({case: partial(search, queries) for case, search in searches.items()}, _ROUNDS)
    one = time_interleaved({case: partial(search, queries[:1]) for case, search in searches.items()}, _ROUNDS)
    truth = top(queries, embeddings)
    return [
        SearchRow(
            kind=case.kind,
            images=images,
            vectors=vectors,
            queries_per_s=_QUERIES / many[case].median,
            one_query_ms=1e3 * one[case].median,
            agreement=agreement(truth, search(queries)[:, :_TOP] // (vectors if case.kind is None else 1)),
        )
        for case, search in searches.items()
    ]


def _kinds(vectors: int) -> list[SearchKind]:
    """Return the kinds of search to measure: `cirrus bench index` has all; several vectors are searched exactly."""
    return [SearchKind.EXACT, SearchKind.APPROXIMATE] if vectors == 1 else [SearchKind.EXACT]


def _faiss_alone(embeddings: NDArray[np.float32]) -> Search:
    """Return a search by FAISS alone, which finds the best vectors and knows nothing of images."""
    index = faiss.IndexFlatIP(_DIM)
    index.add(embeddings.reshape(-1, _DIM))
    return lambda queries: index.search(queries, _K)[1]


def _index(space: SpaceSpec, embeddings: NDArray[np.float32], kind: SearchKind) -> FaissIndex:
    return index_in_memory(space, embeddings, options=BuildOptions(kind=kind))[0]


def _cirrus(index: FaissIndex) -> Search:
    return lambda queries: index.search(queries, _K).rows


def _clustered(images: int, vectors: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return gallery vectors around common centres, as real embeddings are, and queries around the same centres."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((_CLUSTERS, _DIM), dtype=np.float32)

    def draw(*shape: int) -> NDArray[np.float32]:
        rows = centres[generator.integers(0, _CLUSTERS, shape)]
        rows += 0.7 * generator.standard_normal(rows.shape, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    return draw(images) if vectors == 1 else draw(images, vectors), draw(_QUERIES)
