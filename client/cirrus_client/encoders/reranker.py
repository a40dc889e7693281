"""The interface of rerankers: a second stage between the index and the answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cirrus_client.errors import UnsupportedQuery
from cirrus_client.image.inputs import ImageInput
from cirrus_client.names import EnsembleName

Scores = NDArray[np.float32]
"""float32 [k], one score per candidate; higher is better."""


class Reranker(Protocol):
    """Scores gallery images as answers to a composed query, each looked at together with the query.

    Encoders of a bundle with a reranker are rerankers. Threads may share one: each call returns its own answer.
    """

    def scores(self, image: ImageInput | None, text: str | None, candidates: Sequence[ImageInput]) -> Scores:
        """Return one score per candidate, float32 [k]; higher is better. image, text: the query; text may be None.

        Scores of one query can be compared, those of different queries can't. Raises InvalidImage, InvalidText or
        UnreadableImage for a bad query, or, as "candidate" with its position, for a bad candidate; UnsupportedQuery for
        a query that the reranker does not take, or if there is none.
        """
        ...


class AsyncReranker(Protocol):
    """`Reranker` for asyncio. Tasks of one event loop may share it."""

    async def scores(self, image: ImageInput | None, text: str | None, candidates: Sequence[ImageInput]) -> Scores:
        """See `Reranker.scores`."""
        ...


def check_reranked(image: object | None, ensembles: Collection[EnsembleName]) -> None:
    """Raise UnsupportedQuery if a bundle with these ensembles has no reranker, or if the query has no image."""
    if EnsembleName.SCORE_CANDIDATE not in ensembles:
        raise UnsupportedQuery(
            "it is to be re-ranked, and this bundle has no reranker: leave rerank out, or export a Q-Former recipe "
            "with --option reranker=true",
            item="query",
            position=0,
        )
    if image is None:
        raise UnsupportedQuery(
            "it is to be re-ranked and has no image: the reranker reads the prompt that image and text make together",
            item="query",
            position=0,
        )
