"""Search the index of a collection for many requests: in batches, under filters, with the rules of an answer."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import InvalidFilter
from cirrus_client.index.protocol import FilteredIndex, Index
from cirrus_client.index.saved import SavedIndex
from cirrus_client.service.batching import Batcher
from cirrus_client.service.filter_models import Filter
from cirrus_client.service.filters import Mask, matching
from cirrus_client.service.ranking import Ranked, Rows, Rules, Scores, select

T = TypeVar("T")
_BATCH = 64
_WAITING = 100_000  # what waits is bounded by the encoder's queue
_KEPT = 16


@dataclass(frozen=True)
class _Wanted:
    embedding: Embeddings
    k: int
    among: Mask | None


class Searcher:
    """Searches one index. Tasks of one event loop may share it. Masks of recent filters are kept."""

    def __init__(self, saved: SavedIndex) -> None:
        """Keep the index."""
        self._index: Index = saved.index
        self._images = len(saved.items)
        self.columns: pa.Table = saved.items.columns
        self._masks: _Recent[Mask] = _Recent()
        self._groups: _Recent[NDArray[np.int64]] = _Recent()
        self._batcher: Batcher[_Wanted, tuple[Rows, Scores]] = Batcher(
            self._run, max_batch=_BATCH, max_waiting=_WAITING
        )

    async def mask(self, wanted: Filter | None) -> Mask | None:
        """Return which items are in a filter, bool [N]; None for no filter. Raises InvalidFilter."""
        if wanted is None:
            return None
        self._filtered()
        key = wanted.model_dump_json()
        return await asyncio.to_thread(self._masks.get, key, lambda: matching(self.columns, wanted))

    async def groups(self, column: str | None) -> NDArray[np.int64] | None:
        """Return the number of each item's value in a column, int64 [N], -1 where it is null. Raises InvalidFilter."""
        if column is None:
            return None
        if column not in self.columns.column_names:
            known = ", ".join(sorted(self.columns.column_names)) or "none"
            raise InvalidFilter(f"there is no column {column!r}; there are: {known}", place="unique")
        return await asyncio.to_thread(self._groups.get, column, lambda: _groups(self.columns[column]))

    async def rank(self, embedding: Embeddings, rules: Rules, among: Mask | None) -> list[Ranked]:
        """Return the best items for a query embedding, float32 [D], that the rules answer, best first."""
        total = self._images if among is None else int(np.count_nonzero(among))
        fetched = min(total, rules.count + len(rules.left_out))
        if rules.collapses:
            fetched = min(total, 4 * fetched)
        while True:
            if not fetched:
                return []
            found = (await self._batcher.submit([_Wanted(embedding, fetched, among)]))[0].result
            ranked = await asyncio.to_thread(select, *found, rules, self._vectors)
            below = rules.min_score is not None and found[1][-1] < rules.min_score
            if len(ranked) >= rules.count or fetched >= total or below:
                return ranked
            fetched = min(total, 4 * fetched)

    def _vectors(self, rows: Rows) -> Embeddings:
        return self._filtered().vectors(rows)

    def _filtered(self) -> FilteredIndex:
        if not isinstance(self._index, FilteredIndex):
            raise InvalidFilter(
                "the index backend of this collection neither filters nor folds; build it with the backend faiss",
                place="filter",
            )
        return self._index

    async def _run(self, wanted: Sequence[_Wanted]) -> Sequence[tuple[Rows, Scores]]:
        return await asyncio.to_thread(self._search, wanted)

    def _search(self, wanted: Sequence[_Wanted]) -> Sequence[tuple[Rows, Scores]]:
        """Search for queries of the same filter and about the same k at once."""
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for place, one in enumerate(wanted):
            alike[id(one.among), one.k.bit_length()].append(place)
        answers: dict[int, tuple[Rows, Scores]] = {}
        for places in alike.values():
            embeddings = np.stack([wanted[place].embedding for place in places])
            k, among = max(wanted[place].k for place in places), wanted[places[0]].among
            hits = (
                self._index.search(embeddings, k)
                if among is None
                else self._filtered().search_among(embeddings, k, among)
            )
            for place, rows, scores in zip(places, hits.rows, hits.scores, strict=True):
                answers[place] = rows[: wanted[place].k], scores[: wanted[place].k]
        return [answers[place] for place in range(len(wanted))]


class _Recent(Generic[T]):
    """The values of the last keys. Threads may share it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made if it is not there."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made


def _groups(column: pa.ChunkedArray) -> NDArray[np.int64]:
    try:
        encoded = pc.dictionary_encode(column).combine_chunks()
    except pa.ArrowException:
        raise InvalidFilter(
            f"the values of a column of type {column.type} can't be told apart", place="unique"
        ) from None
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    groups: NDArray[np.int64] = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return groups
