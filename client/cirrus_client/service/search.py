"""Answer a search: references, embeddings, the index under a filter, the reranker, metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import InvalidImage, ItemError, UnsupportedQuery
from cirrus_client.image.decode import check_header
from cirrus_client.retriever import weighted_sum
from cirrus_client.service.collection import Version
from cirrus_client.service.encoding import Pair
from cirrus_client.service.fetch import ImageReader
from cirrus_client.service.models import FoundItem, Query, Result, SearchAnswer, SearchRequest, Term
from cirrus_client.service.ranking import Ranked, Rules
from cirrus_client.service.reranking import check_rerankable, reranked
from cirrus_client.service.stopwatch import Stage, Stopwatch
from cirrus_client.service.together import all_of


@dataclass(frozen=True)
class Reference:
    """One term of a query. image: the bytes of a file. id: a gallery item in the place of an image."""

    image: bytes | None = None
    id: str | None = None
    text: str | None = None
    weight: float = 1.0


Composed = tuple[Reference, ...]
"""The terms of a query; their weighted embeddings are added."""


async def composed(query: Query, place: int, images: ImageReader) -> Composed:
    """Return the terms of a query. Raises InvalidImage for an image that can't be read, with the query's place."""
    terms: list[Query | Term] = [query, *query.also]
    return tuple([await _reference(term, place, images) for term in terms])


async def answer(
    version: Version, collection: str, request: SearchRequest, queries: Sequence[Composed], watch: Stopwatch
) -> SearchAnswer:
    """Answer a search on one version of a collection. queries: the terms of `request.queries`.

    Raises UnknownItem, InvalidFilter, InvalidImage and what `QueryEncoder.encode` raises.
    """
    searcher = version.searcher
    if request.rerank is not None:
        for place, query in enumerate(queries):
            with_image = query[0].image is not None or query[0].id is not None
            check_rerankable(version, with_image, len(query), place)
    among, groups = await asyncio.gather(searcher.selection(request.filter), searcher.groups(request.unique))
    pairs = await _pairs_of(version, queries, watch)
    embeddings = await _embeddings(version, queries, pairs, watch)

    async def ranked(query: Composed, embedding: Embeddings) -> list[Ranked]:
        left_out = set() if request.include_reference else await asyncio.to_thread(_references, version, query)
        rules = Rules(
            count=max(request.offset + request.k + 1, request.rerank or 0),
            left_out=frozenset(left_out),
            min_score=request.min_score,
            groups=groups,
            fold=request.fold,
        )
        return await searcher.rank(embedding, rules, among)

    with watch.measure(Stage.SEARCH):
        found = await all_of(map(ranked, queries, embeddings))
    if request.rerank is not None and request.offset < request.rerank:
        with watch.measure(Stage.RERANK):
            found = await all_of(
                reranked(version, pair, place, ranking, request.rerank)
                for place, (pair, ranking) in enumerate(zip(pairs, found, strict=True))
            )
    with watch.measure(Stage.METADATA):
        results = await asyncio.to_thread(_results, version, collection, found, request)
    return SearchAnswer(
        collection=collection,
        space=version.space,
        bundle=version.bundle_info(),
        results=results,
        timings=watch.timings(),
    )


def image_link(collection: str, space: str, id: str) -> str:
    """Return the link to an item's image at this service. The space is in it, so that a swap changes the link.

    Slashes are escaped where a browser or a proxy would take the path for a shorter one, like `a.tar/./b.jpg`.
    """
    plain = {"", ".", ".."}.isdisjoint(id.split("/"))
    return f"/v1/items/{quote(id, safe='/' if plain else '')}/image?collection={quote(f'{collection}@{space[:16]}')}"


def _references(version: Version, query: Composed) -> set[int]:
    """Return the rows of the items that a query names, and of those whose file is an image that it gives."""
    rows = {version.images.row(id) for id in {term.id for term in query if term.id is not None}}
    for content in {term.image for term in query if term.image is not None}:
        rows.update(version.saved.items.same_bytes(content))
    return rows


async def _pairs_of(version: Version, queries: Sequence[Composed], watch: Stopwatch) -> list[Pair]:
    """Return the image file and the text of every term of every query."""
    places = [place for place, query in enumerate(queries) for _ in query]
    if len(places) > len(queries) and not version.weighted:
        raise UnsupportedQuery(
            "this collection's images have several vectors each, so that a sum of queries is no query: leave out 'also'"
        )
    terms = [term for query in queries for term in query]
    with watch.measure(Stage.DECODE):
        return await asyncio.to_thread(_pairs, version, terms, places)


async def _embeddings(
    version: Version, queries: Sequence[Composed], pairs: Sequence[Pair], watch: Stopwatch
) -> list[Embeddings]:
    """Return one embedding per query, float32 [D]."""
    places = [place for place, query in enumerate(queries) for _ in query]
    try:
        embeddings = await version.encoder.encode(pairs, watch)
    except ItemError as error:
        raise error if error.position is None else error.at("query", places[error.position]) from None
    ends = np.cumsum([len(query) for query in queries])
    own = np.split(embeddings, ends[:-1])
    return [_sum(rows, [term.weight for term in queries[place]], place) for place, rows in enumerate(own)]


def _pairs(version: Version, terms: Sequence[Reference], places: Sequence[int]) -> list[Pair]:
    pairs: list[Pair] = []
    for term, place in zip(terms, places, strict=True):
        if term.image is not None and term.id is not None:
            raise UnsupportedQuery(
                "it has an image and the id of an item: give one of them", item="query", position=place
            )
        image = version.images.read(term.id) if term.id is not None else term.image
        if image is not None:
            check_pixels(image, version.max_pixels, place)
        pairs.append((image, term.text))
    return pairs


def check_pixels(image: bytes, limit: int, place: int, *, item: str = "query") -> None:
    """Raise InvalidImage, with its item and place, if an image has more pixels than the limit, or is none."""
    try:
        pixels = check_header(image).pixels
    except InvalidImage as error:
        raise error.at(item, place) from None
    if pixels > limit:
        raise InvalidImage(
            f"the image has {pixels:,} pixels, the service takes {limit:,}: make it smaller",
            item=item,
            position=place,
        )


def _sum(embeddings: Embeddings, weights: Sequence[float], place: int) -> Embeddings:
    try:
        return weighted_sum(embeddings, weights)
    except UnsupportedQuery as error:
        raise error.at("query", place) from None


async def _reference(term: Query | Term, place: int, images: ImageReader) -> Reference:
    try:
        image = None if term.image is None else await images.read(term.image)
    except InvalidImage as error:
        raise error.at("query", place) from None
    weight = term.weight if isinstance(term, Term) else 1.0
    return Reference(image, term.id, term.text, weight)


def _results(
    version: Version, collection: str, found: Sequence[Sequence[Ranked]], request: SearchRequest
) -> list[Result]:
    """Return what is answered of each ranking. An item that was removed since it was found is left out."""
    end = request.offset + request.k
    shown = [ranking[request.offset : end] for ranking in found]
    rows = [row for ranking in shown for one in ranking for row in (one.row, *one.duplicates)]
    known = dict(zip(rows, version.saved.items.rows(rows), strict=True))
    results = []
    for ranking, whole in zip(shown, found, strict=True):
        there = [(one, item) for one in ranking if (item := known[one.row]) is not None]
        items = [
            FoundItem(
                id=item.id,
                rank=rank,
                score=one.score,
                metadata=item.metadata,
                image=image_link(collection, version.space, item.id),
                duplicates=[folded.id for row in one.duplicates if (folded := known[row]) is not None],
                rerank_score=one.rerank_score,
            )
            for rank, (one, item) in enumerate(there, start=request.offset + 1)
        ]
        results.append(Result(items=items, more=len(whole) > end))
    return results
