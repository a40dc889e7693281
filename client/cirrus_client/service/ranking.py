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
_AT_ONCE = 4_096


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
    """Answer the best row, fold into it what is similar, and go on with the best row that is left."""
    assert rules.fold is not None
    kept: list[Ranked] = []
    nearest = np.zeros(len(rows), dtype=np.int64)  # of the kept rows before each, the most similar, and how similar
    similar = np.full(len(rows), -np.inf, dtype=np.float32)
    place = 0
    while place < len(rows) and len(kept) < rules.count:
        behind = slice(place + 1, None)
        found = _similarity(vectors[behind], vectors[place])
        nearer = found > similar[behind]
        nearest[behind][nearer], similar[behind][nearer] = len(kept), found[nearer]
        kept.append(Ranked(int(rows[place]), float(scores[place])))
        place = _first_below(similar, rules.fold, place + 1)
    for folded in np.flatnonzero(similar[:place] >= rules.fold).tolist():
        kept[nearest[folded]].duplicates.append(int(rows[folded]))
    return kept


def _first_below(similar: Scores, fold: float, start: int) -> int:
    below = np.flatnonzero(similar[start:] < fold)
    return start + int(below[0]) if len(below) else len(similar)


def _similarity(of: Embeddings, to: Embeddings) -> Scores:
    """Return the similarity of n images, [n, V, D], to another one, [V, D].

    That is the cosine; for several vectors, the mean over an image's vectors of the best cosine with the other's.
    """
    parts = [of[start : start + _AT_ONCE] @ to.T for start in range(0, len(of), _AT_ONCE)]
    found = [part.max(axis=2).mean(axis=1) for part in parts]
    return np.concatenate([np.empty(0, dtype=np.float32), *found])
