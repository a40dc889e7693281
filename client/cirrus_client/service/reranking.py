"""Order the best of a ranking anew, by what the bundle's reranker sees of the query and each image together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cirrus_client.encoders.reranker import check_reranked
from cirrus_client.errors import InvalidImage, ItemError, UnknownItem, UnsupportedQuery
from cirrus_client.service.collection import Version
from cirrus_client.service.encoding import Pair
from cirrus_client.service.ranking import Ranked

log = logging.getLogger(__name__)


def check_rerankable(version: Version, image: bool, terms: int, place: int) -> None:
    """Raise UnsupportedQuery, with the query's place, if a query can't be re-ranked.

    image: whether it has one. terms: how many it has, the query itself included.
    """
    if terms > 1:
        raise UnsupportedQuery(
            "it is to be re-ranked and has several terms; a reranker reads one image and one text: leave out 'also'",
            item="query",
            position=place,
        )
    try:
        check_reranked(True if image else None, version.spec.ensembles)
    except UnsupportedQuery as error:
        raise error.at("query", place) from None


async def reranked(version: Version, query: Pair, place: int, ranking: Sequence[Ranked], count: int) -> list[Ranked]:
    """Return a query's ranking with its first `count` items in the order of their scores, best first.

    An item whose file can't be read, or is broken, has no score and stands behind those that have one. place: the
    query's. Raises UnsupportedQuery if no file can be read, and what `QueryEncoder.scores` raises.
    """
    window, rest = ranking[:count], ranking[count:]
    files = await asyncio.to_thread(_files, version, window)
    if window and not files:
        raise UnsupportedQuery(
            "it is to be re-ranked, and no candidate's file can be read below the folder of the collection's images",
            item="query",
            position=place,
        )
    places = list(files)
    while True:
        try:
            scores = await version.encoder.scores(query, [files[one] for one in places])
            break
        except InvalidImage as error:
            if error.item != "candidate" or error.position is None:
                raise error.at("query", place) from None
            log.warning("row %d is not re-ranked: %s", window[places[error.position]].row, error.reason)
            del places[error.position]
        except ItemError as error:
            raise error.at("query", place) from None
    order = np.argsort(-scores, kind="stable").tolist()
    best = [replace(window[places[one]], rerank_score=float(scores[one])) for one in order]
    others = [one for number, one in enumerate(window) if number not in set(places)]
    return [*best, *others, *rest]


def _files(version: Version, window: Sequence[Ranked]) -> dict[int, bytes]:
    """Return the image files that can be read, by place in the window. An item may be gone since it was found."""
    found: dict[int, bytes] = {}
    for place, item in enumerate(version.saved.items.rows([one.row for one in window])):
        if item is None:
            continue
        try:
            found[place] = version.images.read(item.id)
        except UnknownItem as error:
            log.warning("%r is not re-ranked: %s", item.id, error)
    return found
