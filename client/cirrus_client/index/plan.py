"""Say which kinds of index fit a gallery and a memory budget, before one is built.

Memory is arithmetic of what FAISS stores. Times are those of `cirrus bench index`, for the measured gallery that is
nearest in size and has one or several vectors per image too, scaled to this one by how each kind's work grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cirrus_client.bundle import SpaceSpec
from cirrus_client.index.faiss_kinds import KINDS
from cirrus_client.index.figures import IndexFigures, measured_figures
from cirrus_client.index.protocol import SearchKind, Storage

_QUICK_MS = 20.0
_GOOD_AGREEMENT = 0.98
_ITEM = 130  # a path, and a digest with its place in their order


@dataclass(frozen=True)
class PlannedIndex:
    """An index of one kind over a gallery.

    memory_bytes: what a process needs so that no query waits for a disk, or for RABITQ, for more than the exact vectors
    of its candidates. disk_bytes: its files. build_s, one_query_ms: about, on the measured machine. agreement: the
    share of exact search's ten best that was found over the measured gallery. fits: into the budget, if there is one.
    """

    kind: SearchKind
    storage: Storage
    memory_bytes: int
    disk_bytes: int
    build_s: float
    one_query_ms: float
    agreement: float
    fits: bool


def plan(images: int, space: SpaceSpec, budget_bytes: int | None = None) -> list[PlannedIndex]:
    """Return what an index of each measured kind would be over a gallery of this size and space."""
    return [_planned(row, images, space, budget_bytes) for row in _nearest(images, space.vectors > 1)]


def recommended(planned: list[PlannedIndex]) -> PlannedIndex | None:
    """Return the first exact one that fits and is quick; else the quickest that fits and agrees well; else None."""
    fitting = [one for one in planned if one.fits]
    exact = [one for one in fitting if one.kind is SearchKind.EXACT and one.one_query_ms <= _QUICK_MS]
    good = [one for one in fitting if one.agreement >= _GOOD_AGREEMENT]
    return exact[0] if exact else min(good, key=lambda one: one.one_query_ms, default=None)


def _nearest(images: int, several: bool) -> list[IndexFigures]:
    """Return for each kind and storage the measured gallery whose size is nearest, by its ratio to `images`."""
    alike = [row for row in measured_figures().rows if (row.vectors > 1) == several]
    nearest: dict[tuple[SearchKind, Storage], IndexFigures] = {}
    for row in sorted(alike, key=lambda row: -abs(math.log(images / row.images))):
        nearest[row.kind, row.storage] = row
    return sorted(nearest.values(), key=lambda row: (list(SearchKind).index(row.kind), row.storage != Storage.FLOAT32))


def _planned(row: IndexFigures, images: int, space: SpaceSpec, budget: int | None) -> PlannedIndex:
    vectors = images * space.vectors
    memory = KINDS[row.kind].memory_bytes(vectors, space.dim, row.storage) + images * _ITEM
    on_disk = vectors * space.dim * row.storage.value_bytes if row.kind is SearchKind.RABITQ else 0
    more, wider = vectors / (row.images * row.vectors), space.dim / row.dim
    return PlannedIndex(
        kind=row.kind,
        storage=row.storage,
        memory_bytes=memory,
        disk_bytes=memory + on_disk,
        build_s=row.build_s * _build_growth(row.kind, more) * wider,
        one_query_ms=row.one_query_ms * _search_growth(row.kind, more, row.images * row.vectors) * wider,
        agreement=row.agreement,
        fits=budget is None or memory <= budget,
    )


def _build_growth(kind: SearchKind, more: float) -> float:
    """Every vector is compared with all centres, whose number grows as the root of that of the vectors."""
    return more if kind in (SearchKind.EXACT, SearchKind.HNSW) else more**1.5


def _search_growth(kind: SearchKind, more: float, measured: int) -> float:
    """Exact search grows with the number of vectors, lists with its root, and a path through a graph with its log."""
    if kind is SearchKind.EXACT:
        return more
    return math.log(max(2.0, more * measured)) / math.log(measured) if kind is SearchKind.HNSW else math.sqrt(more)
