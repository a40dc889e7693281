"""From the nearest rows to the answer that people expect: without the reference, one per product, duplicates folded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.index.distinct import first_of_groups
from cirrus_client.index.items import Groups

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Rules:
    """Which of the nearest rows are answered.

    count: how many, from the best on. left_out: rows that are not answered. min_score: lower scores are not answered.
    groups: the best row of each is answered, and every row that is in none. fold: rows whose similarity to a better one
    is at least this are its duplicates.
    """

    count: int
    left_out: frozenset[int] = frozenset()
    min_score: float | None = None
    groups: Groups | None = None
    fold: float | None = None

    @property
    def collapses(self) -> bool:
        """Whether an answered row may stand for many others."""
        return self.groups is not None or self.fold is not None


@dataclass(frozen=True)
class Ranked:
    """A row of an answer, and the rows that are folded into it. rerank_score: None where no reranker looked at it."""

    row: int
    score: float
    duplicates: list[int] = field(default_factory=list)
    rerank_score: float | None = None


def select(rows: Rows, scores: Scores, rules: Rules, vectors: Callable[[Rows], Embeddings]) -> list[Ranked]:
    """Return the rows that are answered, at most `rules.count`. rows, scores: what was found, best first.

    vectors: returns the vectors of rows, float32 [n, V, D]; it is asked if duplicates are folded.
    """
    found = rows >= 0
    if rules.min_score is not None:
        found &= scores >= rules.min_score
    if rules.left_out:
        found &= ~np.isin(rows, list(rules.left_out))
    rows, scores = rows[found], scores[found]
    if rules.groups is not None:
        first = first_of_groups(rules.groups.numbers(rows))
        rows, scores = rows[first], scores[first]
    if rules.fold is None:
        best = zip(rows[: rules.count].tolist(), scores[: rules.count].tolist(), strict=True)
        return [Ranked(row, score) for row, score in best]
    return _folded(rows, scores, rules, vectors(rows))


def _folded(rows: Rows, scores: Scores, rules: Rules, vectors: Embeddings) -> list[Ranked]:
    assert rules.fold is not None
    kept: list[Ranked] = []
    places: list[int] = []
    for place, (row, score) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True)):
        if kept:
            similar = _similarity(vectors[place], vectors[places])
            nearest = int(np.argmax(similar))
            if similar[nearest] >= rules.fold:
                kept[nearest].duplicates.append(row)
                continue
        if len(kept) == rules.count:
            break
        kept.append(Ranked(row, score))
        places.append(place)
    return kept


def _similarity(of: Embeddings, to: Embeddings) -> Scores:
    """Return the similarity of an image's vectors, [V, D], to those of n others, [n, V, D].

    That is the cosine; for several vectors, the mean over the image's vectors of the best cosine with the other's.
    """
    similar: Scores = np.einsum("vd,nwd->nvw", of, to).max(axis=2).mean(axis=1)
    return similar
