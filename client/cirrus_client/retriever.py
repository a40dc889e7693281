"""Composed search: encode a query, search an index, re-rank its best, and return gallery images with their metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import iscoroutinefunction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import AsyncEncoder, Embeddings, Encoder, is_async
from cirrus_client.encoders.reranker import AsyncReranker, Reranker, Scores
from cirrus_client.errors import InvalidInput, ItemError, SearchIndexError, SpaceMismatch, UnsupportedQuery
from cirrus_client.image.inputs import ImageInput
from cirrus_client.index.distinct import search_distinct
from cirrus_client.index.filter_models import Filter, read_filter
from cirrus_client.index.items import Items
from cirrus_client.index.parquet_items import ParquetItems
from cirrus_client.index.protocol import Index, filtered
from cirrus_client.index.saved import open_index
from cirrus_client.index.vectors import check_k

FilterTree: TypeAlias = Filter | Mapping[str, Any]
"""A filter, or its JSON form: `{"column": "price", "op": "<", "value": 50}`."""

R = TypeVar("R")


@dataclass(frozen=True)
class Match:
    """One answer.

    rank: 1 is best. id: the image's path relative to the root of the gallery's images. score: inner product of query
    and image, which is their cosine. image: where the image is, a file path or a URL. metadata: the other columns of
    the index. rerank_score: the reranker's, by which the re-ranked are ordered; None for the others.
    """

    rank: int
    id: str
    score: float
    image: str
    metadata: dict[str, Any]
    rerank_score: float | None = None


@dataclass(frozen=True)
class Term:
    """A reference image, a text or both, as a part of a query. weight: its part in the sum; below 0 leads away."""

    image: ImageInput | None = None
    text: str | None = None
    weight: float = 1.0


class Retriever:
    """Answers composed queries with gallery images, best first.

    Threads may share a retriever. `close`, or the end of a `with` block, closes its encoder's connections.
    """

    def __init__(self, encoder: Encoder, index: Index, items: Items, *, reranker: Reranker | None = None) -> None:
        """Join an encoder, an index, and the images that the rows of the index stand for.

        reranker: the second stage of `search(rerank=)`; often the encoder again. It may be of another bundle. Raises
        SpaceMismatch if encoder and index have different spaces. Raises SearchIndexError if the number of rows differs
        from the number of images.
        """
        _check_fit(encoder.space, index, items)
        self._encoder = encoder
        self._index = index
        self._items = items
        self._reranker = reranker

    def search(
        self,
        *,
        image: ImageInput | None = None,
        text: str | None = None,
        k: int = 10,
        filter: FilterTree | None = None,
        unique: str | None = None,
        rerank: int | None = None,
    ) -> list[Match]:
        """Return the k best gallery images for a reference image and an edit text, best first.

        filter: only images in it are answered. unique: a column; of the images with the same value in it, the best is
        answered, and images without a value are. rerank: how many of the best the reranker looks at and orders anew;
        None leaves them as the index found them. Raises InvalidImage, InvalidText or UnsupportedQuery for a query that
        can't be encoded, SearchIndexError for a k under 1, InvalidFilter for a filter or a column that does not fit the
        metadata; with rerank also what `Reranker.scores` raises.
        """
        return self.search_many([image], [text], k=k, filter=filter, unique=unique, rerank=rerank)[0]

    def search_many(
        self,
        images: Sequence[ImageInput | None],
        texts: Sequence[str | None],
        *,
        k: int = 10,
        filter: FilterTree | None = None,
        unique: str | None = None,
        rerank: int | None = None,
    ) -> list[list[Match]]:
        """Return the k best gallery images for each (image, text) pair. Errors have the position of the pair.

        filter, unique, rerank: see `search`.
        """
        if rerank is None:
            return _matches(self._index, self._items, self._encoder.encode_queries(images, texts), k, filter, unique)
        reranker = _checked(self._reranker, rerank)
        embeddings = self._encoder.encode_queries(images, texts)
        nearest = _matches(self._index, self._items, embeddings, max(check_k(k), rerank), filter, unique)
        answers = []
        for position, (image, text, found) in enumerate(zip(images, texts, nearest, strict=True)):
            try:
                scores = reranker.scores(image, text, [match.image for match in found[:rerank]])
            except ItemError as error:
                raise _of_query(error, position) from None
            answers.append(_reranked(found, scores)[:k])
        return answers

    def search_terms(
        self, terms: Sequence[Term], *, k: int = 10, filter: FilterTree | None = None, unique: str | None = None
    ) -> list[Match]:
        """Return the k best gallery images for several references or texts together, best first.

        The query is the sum of the terms' embeddings, each times its weight; equal weights are the mean. filter,
        unique: see `search`. Raises UnsupportedQuery if the terms cancel each other out, or if images have several
        vectors, so that a sum is no query; else what `search` raises, with the position of the term.
        """
        _check_terms(terms, self._encoder.space)
        embeddings = self._encoder.encode_queries([term.image for term in terms], [term.text for term in terms])
        query = weighted_sum(embeddings, [term.weight for term in terms])
        return _matches(self._index, self._items, query[None], k, filter, unique)[0]

    def close(self) -> None:
        """Close the encoder's connections, if it has any."""
        close = getattr(self._encoder, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRetriever:
    """`Retriever` for asyncio: the same methods as coroutines. Tasks of one event loop may share it.

    An `AsyncEncoder` is awaited. Any other encoder, and the index, run in threads, so they do not block the event loop.
    """

    def __init__(
        self,
        encoder: Encoder | AsyncEncoder,
        index: Index,
        items: Items,
        *,
        reranker: Reranker | AsyncReranker | None = None,
    ) -> None:
        """Join an encoder, an index and the images of its rows. The first search checks that they fit."""
        self._encoder: Any = encoder
        self._index = index
        self._items = items
        self._reranker = reranker
        self._fits = False

    async def search(
        self,
        *,
        image: ImageInput | None = None,
        text: str | None = None,
        k: int = 10,
        filter: FilterTree | None = None,
        unique: str | None = None,
        rerank: int | None = None,
    ) -> list[Match]:
        """See `Retriever.search`. Also raises what the constructor of `Retriever` raises."""
        return (await self.search_many([image], [text], k=k, filter=filter, unique=unique, rerank=rerank))[0]

    async def search_many(
        self,
        images: Sequence[ImageInput | None],
        texts: Sequence[str | None],
        *,
        k: int = 10,
        filter: FilterTree | None = None,
        unique: str | None = None,
        rerank: int | None = None,
    ) -> list[list[Match]]:
        """See `Retriever.search_many`."""
        if rerank is not None:
            _checked(self._reranker, rerank)
        embeddings = await self._embeddings(images, texts)
        wanted = max(check_k(k), rerank or 0)
        answers = await asyncio.to_thread(_matches, self._index, self._items, embeddings, wanted, filter, unique)
        if rerank is None:
            return answers
        scored = await asyncio.gather(
            *(
                self._scores(position, image, text, found[:rerank])
                for position, (image, text, found) in enumerate(zip(images, texts, answers, strict=True))
            )
        )
        return [_reranked(found, scores)[:k] for found, scores in zip(answers, scored, strict=True)]

    async def search_terms(
        self, terms: Sequence[Term], *, k: int = 10, filter: FilterTree | None = None, unique: str | None = None
    ) -> list[Match]:
        """See `Retriever.search_terms`."""
        _check_terms(terms, self._index.space)
        embeddings = await self._embeddings([term.image for term in terms], [term.text for term in terms])
        query = weighted_sum(embeddings, [term.weight for term in terms])
        return (await asyncio.to_thread(_matches, self._index, self._items, query[None], k, filter, unique))[0]

    async def close(self) -> None:
        """Close the encoder's connections, if it has any."""
        if is_async(self._encoder):
            await self._encoder.close()
        elif hasattr(self._encoder, "close"):
            self._encoder.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _embeddings(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        if not self._fits:
            _check_fit(await self._space(), self._index, self._items)
            self._fits = True
        if is_async(self._encoder):
            return await self._encoder.encode_queries(images, texts)
        embeddings: Embeddings = await asyncio.to_thread(self._encoder.encode_queries, images, texts)
        return embeddings

    async def _scores(
        self, position: int, image: ImageInput | None, text: str | None, found: Sequence[Match]
    ) -> Scores:
        reranker: Any = self._reranker
        candidates = [match.image for match in found]
        try:
            if iscoroutinefunction(reranker.scores):
                scores: Scores = await reranker.scores(image, text, candidates)
            else:
                scores = await asyncio.to_thread(reranker.scores, image, text, candidates)
        except ItemError as error:
            raise _of_query(error, position) from None
        return scores

    async def _space(self) -> SpaceSpec:
        if is_async(self._encoder):
            return await self._encoder.space()
        space: SpaceSpec = self._encoder.space
        return space


def open_retriever(
    encoder: Encoder,
    index: Path | str,
    *,
    images: str | None = None,
    backend: str | None = None,
    reranker: Reranker | None = None,
) -> Retriever:
    """Open a saved index and join it with an encoder. images, backend: see `open_index`. reranker: see `Retriever`.

    Raises SearchIndexError if the index is damaged, SpaceMismatch if it was built in another space.
    """
    saved = open_index(index, images=images, backend=backend)
    return Retriever(encoder, saved.index, saved.items, reranker=reranker)


def open_async_retriever(
    encoder: Encoder | AsyncEncoder,
    index: Path | str,
    *,
    images: str | None = None,
    backend: str | None = None,
    reranker: Reranker | AsyncReranker | None = None,
) -> AsyncRetriever:
    """Do what `open_retriever` does, for asyncio. SpaceMismatch is raised by the first search."""
    saved = open_index(index, images=images, backend=backend)
    return AsyncRetriever(encoder, saved.index, saved.items, reranker=reranker)


def weighted_sum(embeddings: Embeddings, weights: Sequence[float]) -> Embeddings:
    """Return the normalised sum, float32 [D], of a query's embeddings [N, D], each times its weight.

    A single embedding keeps its bits. Raises UnsupportedQuery if a weight is not finite, or the terms cancel each other
    out.
    """
    factors = np.array(weights, dtype=np.float32)
    if not np.isfinite(factors).all():
        raise UnsupportedQuery("its weights are not all finite numbers", item="query")
    if len(factors) == 1 and factors[0] != 0:
        alone: Embeddings = embeddings[0] * np.sign(factors[0])
        return alone
    total = factors @ embeddings
    length = float(np.linalg.norm(total))
    if not length > 1e-6:
        raise UnsupportedQuery("its terms cancel each other out", item="query")
    summed: Embeddings = (total / length).astype(np.float32)
    return summed


def _check_terms(terms: Sequence[Term], space: SpaceSpec) -> None:
    if not terms:
        raise UnsupportedQuery("it has no terms: give a reference image or a text", item="query")
    if space.vectors > 1 and len(terms) > 1:
        raise UnsupportedQuery(
            f"images of this space have {space.vectors} vectors each, so a sum of queries is no query: give one term",
            item="query",
        )


def _check_fit(space: SpaceSpec, index: Index, items: Items) -> None:
    if space.fingerprint != index.space.fingerprint:
        raise SpaceMismatch(
            f"the query encoder's space is {space.fingerprint}, the index's space is {index.space.fingerprint}; they "
            f"differ in {space.differences_in_words(index.space)}: embed the gallery with this encoder's bundle",
            components=space.differences(index.space),
        )
    if isinstance(items, ParquetItems) and len(index) != len(items):
        raise SearchIndexError(f"the index has {len(index)} rows, but {len(items)} images are named")


def _checked(reranker: R | None, rerank: int) -> R:
    if reranker is None:
        raise UnsupportedQuery(
            "it is to be re-ranked, and this retriever has no reranker: open it with one, like reranker=encoder",
            item="query",
        )
    if rerank < 1:
        raise InvalidInput(f"rerank is {rerank}, and at least 1 of the best is looked at; None re-ranks nothing")
    return reranker


def _of_query(error: ItemError, position: int) -> ItemError:
    """Return an error of one query's re-ranking with the query's position; that of a candidate keeps its own."""
    return error.at("query", position) if error.item == "query" else error


def _reranked(found: Sequence[Match], scores: Scores) -> list[Match]:
    """Return the first matches by their scores, best first and ties as they were, and then the others."""
    order = np.argsort(-scores, kind="stable")
    scored = [replace(found[place], rerank_score=float(scores[place])) for place in order.tolist()]
    return [replace(match, rank=rank) for rank, match in enumerate([*scored, *found[len(scores) :]], start=1)]


def _matches(
    index: Index, items: Items, queries: Embeddings, k: int, filter: FilterTree | None, unique: str | None
) -> list[list[Match]]:
    among = None if filter is None else items.select(read_filter(filter))
    if unique is not None:
        groups = items.groups(unique)
        hits = [search_distinct(filtered(index), query[None], k, groups, among) for query in queries]
    elif among is not None:
        hits = [filtered(index).search_among(queries, k, among)]
    else:
        hits = [index.search(queries, k)]
    return [
        _matched(items, rows, scores) for found in hits for rows, scores in zip(found.rows, found.scores, strict=True)
    ]


def _matched(items: Items, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> list[Match]:
    found = rows >= 0
    pairs = zip(items.rows(rows[found].tolist()), scores[found].tolist(), strict=True)
    best = [(item, score) for item, score in pairs if item is not None]  # None: removed since it was found
    return [Match(rank, item.id, score, item.image, item.metadata) for rank, (item, score) in enumerate(best, start=1)]
