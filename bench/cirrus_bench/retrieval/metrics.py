"""Metrics of the papers, over rankings: int64 [Q, K] gallery rows, best first, without repetition.

Each returns one value a query, [Q], so that means over a category or a dataset are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ranking = NDArray[np.int64]
Values = NDArray[np.float64]
_NUM_POSITIVES_EPSILON = 1e-5


def recall_at(ranking: Ranking, targets: Sequence[int], k: int) -> Values:
    """Return 1 where the one target [Q] is among the first k, else 0 (FashionIQ, CIRR)."""
    return (ranking[:, :k] == np.asarray(targets)[:, None]).any(axis=1).astype(np.float64)


def precision_at(relevant: NDArray[np.bool_], k: int) -> Values:
    """Return the share of relevant items among the first k, of relevance [Q, K] in ranking order (SBIR)."""
    return np.asarray(relevant[:, :k].mean(axis=1), dtype=np.float64)


def average_precision_at(ranking: Ranking, truths: Sequence[Sequence[int]], k: int) -> Values:
    """Return AP@k with several ground truths a query: sum of precision at each hit over min(number of truths, k).

    CIRCO (arXiv 2303.15247, section 4; miccunifi/CIRCO `evaluation.py`).
    """
    values = []
    for rows, truth in zip(ranking[:, :k], truths, strict=True):
        hits = np.isin(rows, list(truth))
        precisions = np.cumsum(hits) / np.arange(1, len(rows) + 1)
        values.append(float((precisions * hits).sum() / min(len(truth), k)))
    return np.array(values)


def average_precision(relevant: NDArray[np.bool_]) -> Values:
    """Return plain AP over relevance [Q, K] in ranking order: mean precision at the relevant places, 0 if none is."""
    places = np.arange(1, relevant.shape[1] + 1)
    precisions = np.cumsum(relevant, axis=1) / places
    found = relevant.sum(axis=1)
    return np.asarray((precisions * relevant).sum(axis=1) / np.maximum(found, 1), dtype=np.float64)


def trapezoidal_average_precision(relevant: NDArray[np.bool_]) -> Values:
    """Return the AP of UNION's released SBIR evaluation (`utils.compute_ap` of baohl00/UNION_for_IGROT).

    Precision just before and just after each relevant place is averaged, and the number of positives is those within
    the ranking given: for mAP@200 those inside the first 200. It differs from plain AP.
    """
    values = []
    for row in relevant:
        places = np.flatnonzero(row)
        earlier = np.arange(len(places))
        before = np.where(places == 0, 1.0, earlier / np.maximum(places, 1))
        after = (earlier + 1) / (places + 1)
        values.append(float(((before + after) / 2).sum() / (len(places) + _NUM_POSITIVES_EPSILON)))
    return np.array(values)


def without(ranking: Ranking, rows: Sequence[int]) -> Ranking:
    """Return the ranking [Q, K - 1] without one row a query, the reference (CIRR). Each must occur in its ranking."""
    kept = ranking != np.asarray(rows)[:, None]
    return ranking[kept].reshape(len(ranking), ranking.shape[1] - 1)


def within(ranking: Ranking, subsets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return, for each query, the rows of its subset in ranking order (CIRR's Recall_subset)."""
    return [
        [int(row) for row in rows if int(row) in subset]
        for rows, subset in zip(ranking, (set(subset) for subset in subsets), strict=True)
    ]
