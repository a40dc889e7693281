"""Search the index of a collection for many requests: in batches, under filters, with the rules of an answer."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import CirrusError
from cirrus_client.index.distinct import best_first
from cirrus_client.index.filter_models import Filter
from cirrus_client.index.items import Groups
from cirrus_client.index.protocol import FilteredIndex, Index, Selection, filtered
from cirrus_client.index.saved import SavedIndex
from cirrus_client.service.batching import Batcher
from cirrus_client.service.ranking import Ranked, Rows, Rules, Scores, select

T = TypeVar("T")
_BATCH = 64
_WAITING = 100_000  # what waits is bounded by the encoder's queue
_KEPT = 16
_MOST_VECTORS = 100_000


@dataclass(frozen=True)
class _Wanted:
    embedding: Embeddings
    k: int
    among: Selection | None


_Found = tuple[Rows, Scores] | CirrusError
"""What one query found, or why its search failed."""


class Searcher:
    """Searches one index. Tasks of one event loop may share it. What recent filters select is kept."""

    def __init__(self, saved: SavedIndex) -> None:
        """Keep the index."""
        self._index: Index = saved.index
        self._items = saved.items
        self._selections: _Recent[Selection] = _Recent()
        self._groups: _Recent[Groups] = _Recent()
        self._batcher: Batcher[_Wanted, _Found] = Batcher(self._run, max_batch=_BATCH, max_waiting=_WAITING)

    async def selection(self, wanted: Filter | None) -> Selection | None:
        """Return the items in a filter; None for no filter. Raises InvalidFilter."""
        if wanted is None:
            return None
        filtered(self._index)
        key = wanted.model_dump_json()
        return await asyncio.to_thread(self._selections.get, key, lambda: self._items.select(wanted))

    async def groups(self, column: str | None) -> Groups | None:
        """Return what tells the values of a column apart, see `Items.groups`. Raises InvalidFilter."""
        if column is None:
            return None
        return await asyncio.to_thread(self._groups.get, column, lambda: self._items.groups(column))

    async def rank(self, embedding: Embeddings, rules: Rules, among: Selection | None) -> list[Ranked]:
        """Return the best items for a query embedding, float32 [D], that the rules answer, best first.

        Where one item per group is answered, the search goes on among the groups that it has not found yet. Where
        duplicates are folded, it ends at the best images that have `_MOST_VECTORS` vectors together.
        An index that is not exact finds more where more is asked for. It is asked for powers of two, so that pages
        agree and an answer does not depend on the queries that are searched for at the same time.
        """
        fetched = 1 << (rules.count + len(rules.left_out) - 1).bit_length()
        if rules.collapses:
            fetched *= 4
        most = sys.maxsize if rules.fold is None else max(fetched, _MOST_VECTORS // self._index.space.vectors)
        groups = rules.groups if isinstance(self._index, FilteredIndex) else None
        rows, scores = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        while True:
            found = (await self._batcher.submit([_Wanted(embedding, fetched, among)]))[0].result
            if isinstance(found, CirrusError):
                raise found
            more, their_scores = found
            if groups is None:
                rows, scores = more, their_scores
            else:  # items without a value are found again
                new = ~np.isin(more, rows)
                rows, scores = best_first(rows, scores, more[new], their_scores[new])
            if not len(rows):
                return []
            ranked = await asyncio.to_thread(select, rows, scores, rules, self._vectors)
            exhausted = len(more) < fetched or more[-1] < 0
            below = not exhausted and rules.min_score is not None and their_scores[-1] < rules.min_score
            if len(ranked) >= rules.count or exhausted or below or fetched == most:
                return ranked
            fetched = min(4 * fetched, most)
            if groups is not None:
                answered = rows[~np.isin(rows, list(rules.left_out))]
                among = await asyncio.to_thread(groups.others, answered, among)

    def _vectors(self, rows: Rows) -> Embeddings:
        return filtered(self._index).vectors(rows)

    async def _run(self, wanted: Sequence[_Wanted]) -> Sequence[_Found]:
        return await asyncio.to_thread(self._search, wanted)

    def _search(self, wanted: Sequence[_Wanted]) -> Sequence[_Found]:
        """Search for queries of the same filter and the same k at once. Those of another filter fail alone."""
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for place, one in enumerate(wanted):
            alike[id(one.among), one.k].append(place)
        answers: dict[int, _Found] = {}
        for places in alike.values():
            embeddings = np.stack([wanted[place].embedding for place in places])
            k, among = wanted[places[0]].k, wanted[places[0]].among
            try:
                hits = (
                    self._index.search(embeddings, k)
                    if among is None
                    else filtered(self._index).search_among(embeddings, k, among)
                )
            except CirrusError as error:
                answers |= dict.fromkeys(places, error)
                continue
            for place, rows, scores in zip(places, hits.rows, hits.scores, strict=True):
                answers[place] = rows, scores
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
