"""Search by inner product in a collection of Milvus, and change the collection while it is searched."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError
from cirrus_client.index.milvus.collection import MOST_ROWS, Collection
from cirrus_client.index.milvus.connection import is_file
from cirrus_client.index.milvus.fields import ITEM
from cirrus_client.index.parquet_items import DIGEST, PATH
from cirrus_client.index.protocol import Hits
from cirrus_client.index.ties import in_order
from cirrus_client.index.vectors import check_k, check_vectors

_MOST_HITS = 1_000_000
_MOST_QUERIES = 64


class _FreshRows:
    """Rows that no item has or had: microseconds since 1970, which exceed the rows of any build."""

    def __init__(self) -> None:
        self._last = 0

    def take(self, count: int) -> range:
        first = max(self._last + 1, time.time_ns() // 1000)
        self._last = first + count - 1
        return range(first, first + count)


_fresh_rows = _FreshRows()
_writing = threading.Lock()  # of all indexes of this process, which may be of one collection


class MilvusIndex:
    """Searches the vectors of a collection. The score of an image of V vectors is its best one (SPRC, section 3).

    Threads may share an index. `upsert` and `delete` may be called while other threads search: what they wrote is seen
    by the searches that begin after they returned. One process at a time may write.
    """

    def __init__(self, collection: Collection) -> None:
        """Keep a collection."""
        self._collection = collection

    @property
    def space(self) -> SpaceSpec:
        """The space of the collection's vectors."""
        return self._collection.space

    def __len__(self) -> int:
        return self._collection.count()

    def search(self, queries: Embeddings, k: int) -> Hits:
        """See `Index.search`."""
        return self.search_among(queries, k, "")

    def search_among(self, queries: Embeddings, k: int, among: str) -> Hits:
        """See `FilteredIndex.search_among`."""
        check_vectors("queries", queries, (self.space.dim,))
        count = check_k(k)
        return in_order(lambda some, k: self._hits(some, k, among), np.ascontiguousarray(queries), count, sys.maxsize)

    def vectors(self, rows: NDArray[np.int64]) -> Embeddings:
        """See `FilteredIndex.vectors`."""
        return self._collection.vectors(rows.tolist())

    def upsert(self, items: pa.Table, embeddings: Embeddings) -> None:
        """Add items, or replace those that have the same path.

        items: a column `image_path`, the columns of the metadata, of which those that are missing are empty, and maybe
        `cirrus:sha256`, binary of 32 bytes, of the images' files. embeddings: float32 [n, *item_shape], in this index's
        space. Raises SearchIndexError if they do not fit the collection or each other, or a path is there twice.
        """
        self._write(items, embeddings, keep=False)

    def refresh(self, items: pa.Table, embeddings: Embeddings) -> None:
        """Do what `upsert` does, but items that are there keep what they have in the columns that are missing."""
        self._write(items, embeddings, keep=True)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items by their paths, and return how many were there."""
        with _writing:
            known = self._collection.numbers_of(ids)
            self._collection.remove(sorted(known.values()))
        return len(known)

    def _write(self, items: pa.Table, embeddings: Embeddings, *, keep: bool) -> None:
        check_vectors("items", embeddings, self.space.item_shape)
        self._check_items(items, len(embeddings))
        vectors = embeddings.reshape(len(embeddings), self.space.vectors, self.space.dim)
        with _writing:
            paths = items[PATH].to_pylist()
            known = self._collection.numbers_of(paths)
            fresh = iter(_fresh_rows.take(len(paths) - len(known)))
            rows = [known[path] if path in known else next(fresh) for path in paths]
            others = [field.field for field in self._collection.fields if field.name not in items.column_names]
            kept = self._collection.first_rows(sorted(known.values()), others) if keep else {}
            self._collection.put(np.array(rows, dtype=np.int64), items, vectors, replace=True, kept=kept)
            if is_file(self._collection.uri):
                self._collection.flush()

    def _check_items(self, items: pa.Table, count: int) -> None:
        if PATH not in items.column_names:
            raise SearchIndexError(f"items: has no column '{PATH}', only {', '.join(items.column_names)}")
        if items.num_rows != count:
            raise SearchIndexError(f"items: has {items.num_rows} rows, and there are embeddings of {count} items")
        if len(pc.unique(items[PATH])) != items.num_rows or items[PATH].null_count:
            raise SearchIndexError(f"items: its column '{PATH}' names some images twice, or has empty places")
        strangers = sorted(set(items.column_names) - {PATH, DIGEST} - set(self._collection.columns.names))
        if strangers:
            known = ", ".join(sorted(self._collection.columns.names)) or "none"
            raise SearchIndexError(
                f"items: the collection has no column '{strangers[0]}'; there are: {known}: leave it out, or build the "
                "index anew"
            )

    def _hits(self, queries: Embeddings, k: int, among: str) -> Hits:
        found = self._nearest(queries, k, among)
        width = max(map(len, found), default=0)
        rows = np.full((len(queries), width), -1, dtype=np.int64)
        scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
        for query, best in enumerate(found):
            rows[query, : len(best)] = list(best)
            scores[query, : len(best)] = list(best.values())
        return Hits(rows, scores)

    def _nearest(self, queries: Embeddings, k: int, among: str) -> list[dict[int, float]]:
        """Return the rows and scores of the k best items per query, best first.

        Vectors come best first, and an item's score is that of its best vector. So once the n best vectors belong to k
        items, those are the k best, for which (k - 1) * V + 1 vectors are always enough. Few are fetched at first.
        """
        enough = min((k - 1) * self.space.vectors + 1, MOST_ROWS)
        fetched = enough if self.space.vectors == 1 else min(4 * k, enough)
        found: list[dict[int, float]] = [{} for _ in queries]
        pending = list(range(len(queries)))
        while pending:
            unfinished = []
            for query, hits in zip(pending, self._searched(queries[pending], fetched, among), strict=True):
                found[query] = self._items_of(hits, k)
                if len(found[query]) < k and len(hits) == fetched:
                    unfinished.append(query)
            if fetched == enough:
                for query in unfinished:
                    self._go_on(queries[query], k, among, found[query])
                break
            pending, fetched = unfinished, min(4 * fetched, enough)
        return found

    def _go_on(self, query: Embeddings, k: int, among: str, found: dict[int, float]) -> None:
        """Add the next best items to those that one search found, by searching among the others."""
        while len(found) < k:
            others = f"{ITEM} not in {list(found)}"
            (hits,) = self._searched(query[None], MOST_ROWS, f"({among}) and {others}" if among else others)
            found.update(self._items_of(hits, k - len(found)))
            if len(hits) < MOST_ROWS:
                return

    def _searched(self, queries: Embeddings, k: int, among: str) -> list[list[tuple[int, float]]]:
        """Search for some queries at a time, so that an answer is a message that gRPC takes, and comes in time."""
        at_once = max(1, min(_MOST_QUERIES, _MOST_HITS // k))
        answers = []
        for start in range(0, len(queries), at_once):
            answers += self._collection.search(queries[start : start + at_once], k, among)
        return answers

    def _items_of(self, hits: Sequence[tuple[int, float]], k: int) -> dict[int, float]:
        items: dict[int, float] = {}
        for number, score in hits:
            items.setdefault(number // self.space.vectors, score)
            if len(items) == k:
                break
        return items
