"""The metrics that papers report, computed from rankings and ground truth.

A ranking is int64 [Q, K]: gallery rows per query, best first, none twice. Ground truth is one or several gallery rows
per query. Each metric returns float64 [Q] between 0 and 1, one value per query. A paper's figure is their mean, so a
gallery that is too large for one [Q, K] array can be measured in parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ranking = NDArray[np.int64]
Values = NDArray[np.float64]

_UNION_EPSILON = 1e-5


def recall_at_k(ranking: Ranking, targets: Sequence[int], k: int) -> Values:
    """Return 1 where the target is among the first k, else 0 (FashionIQ; CIRR; CIRCO with the annotated target).

    ranking: int64 [Q, K >= k]. targets: one row per query. Raises ValueError if lengths differ, K < k, or a query's
    ranking has a row twice or a negative row.
    """
    return _relevance(ranking, _one_each(targets), k).any(axis=1).astype(np.float64)


def precision_at_k(ranking: Ranking, truths: Sequence[Sequence[int]], k: int) -> Values:
    """Return the number of correct rows among the first k, over k (sketch-based retrieval).

    A gallery of fewer than k images is divided by k all the same, as `utils.precision_at_k` of baohl00/UNION_for_IGROT
    does. ranking: int64 [Q, K], K >= k or the size of the gallery. truths: every correct row of each query. Raises
    ValueError as `recall_at_k`.
    """
    found = _relevance(ranking, truths, min(k, ranking.shape[1])).sum(axis=1)
    return np.asarray(found / k, dtype=np.float64)


def average_precision_at_k(ranking: Ranking, truths: Sequence[Sequence[int]], k: int) -> Values:
    """Return plain AP@k: the sum over the first k of P(k) rel(k), over min(number of truths, k).

    CIRCO (arXiv 2303.15247, section 4). With k the size of the gallery it is the AP@all of sketch-based retrieval.
    ranking: int64 [Q, K >= k]. truths: every correct row of each query, at least one. Raises ValueError as
    `recall_at_k`, or for a query without ground truth.
    """
    relevant = _relevance(ranking, truths, k)
    possible = np.array([min(len(set(truth)), k) for truth in truths])
    if (possible == 0).any():
        raise ValueError(f"query {possible.argmin()} has no ground truth: its average precision is undefined")
    precisions = relevant.cumsum(axis=1) / np.arange(1, k + 1)
    return np.asarray((precisions * relevant).sum(axis=1) / possible, dtype=np.float64)


def trapezoidal_average_precision_at_k(ranking: Ranking, truths: Sequence[Sequence[int]], k: int) -> Values:
    """Return the AP@k of UNION's released code for sketch-based retrieval, which differs from plain AP.

    `utils.compute_ap` of baohl00/UNION_for_IGROT: the precisions just before and just after each correct place are
    averaged, and their sum is divided by the number of correct rows *inside the first k*, plus 1e-5. Truths beyond
    place k cost nothing, and a query without a correct row scores 0. With k the size of the gallery it is AP@all.
    ranking: int64 [Q, K >= k]. Raises ValueError as `recall_at_k`.
    """
    relevant = _relevance(ranking, truths, k)
    places = np.arange(k)
    after = relevant.cumsum(axis=1)
    before = (after - relevant) / np.maximum(places, 1)
    before[:, 0] = 1.0
    trapezoids = (before + after / (places + 1)) / 2
    return np.asarray((trapezoids * relevant).sum(axis=1) / (after[:, -1] + _UNION_EPSILON), dtype=np.float64)


def without_reference(ranking: Ranking, references: Sequence[int]) -> Ranking:
    """Remove each query's reference image from its ranking; return int64 [Q, K - 1] (CIRR).

    A ranking that is cut at K may not contain the reference; it loses its last place instead. Raises ValueError as
    `recall_at_k`.
    """
    _check_shape(ranking, len(references))
    _check_rows(ranking)
    kept = ranking != np.asarray(references)[:, None]
    kept[kept.all(axis=1), -1] = False
    return ranking[kept].reshape(len(ranking), ranking.shape[1] - 1)


def within_subset(ranking: Ranking, subsets: Sequence[Sequence[int]]) -> Ranking:
    """Return each query's subset in the order of its ranking, int64 [Q, S].

    CIRR's subset is the image set without its reference: S = 5. ranking: int64 [Q, K], usually of the whole gallery.
    Raises ValueError if the subsets' sizes differ or a ranking lacks a member.
    """
    _check_shape(ranking, len(subsets))
    _check_rows(ranking)
    sizes = {len(set(subset)) for subset in subsets}
    if len(sizes) > 1:
        raise ValueError(f"subsets of one size expected, found sizes {sorted(sizes)}")
    size = sizes.pop() if sizes else 0
    chosen = _membership(ranking, subsets)
    lacking = np.flatnonzero(chosen.sum(axis=1) != size)
    if len(lacking):
        raise ValueError(f"the ranking of query {lacking[0]} lacks members of its subset: rank the whole gallery")
    return ranking[chosen].reshape(len(ranking), size)


def subset_recall_at_k(ranking: Ranking, targets: Sequence[int], subsets: Sequence[Sequence[int]], k: int) -> Values:
    """Return Recall_subset@k: recall in the ranking restricted to each query's subset (CIRR, ICCV 2021, section 5).

    Shapes and errors as `within_subset` and `recall_at_k`.
    """
    return recall_at_k(within_subset(ranking, subsets), targets, k)


def _relevance(ranking: Ranking, truths: Sequence[Sequence[int]], k: int) -> NDArray[np.bool_]:
    _check_shape(ranking, len(truths))
    if not 1 <= k <= ranking.shape[1]:
        raise ValueError(f"k is {k}, and the ranking has {ranking.shape[1]} places: rank at least k of the gallery")
    top = ranking[:, :k]
    _check_rows(top)
    return _membership(top, truths)


def _membership(ranking: Ranking, members: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    found = np.zeros(ranking.shape, dtype=np.bool_)
    for query, (rows, of_query) in enumerate(zip(ranking, members, strict=True)):
        found[query] = np.isin(rows, np.asarray(of_query, dtype=np.int64))
    return found


def _check_shape(ranking: Ranking, queries: int) -> None:
    if ranking.ndim != 2 or not np.issubdtype(ranking.dtype, np.integer):
        raise ValueError(f"a ranking is int64 [Q, K], found {ranking.dtype} {list(ranking.shape)}")
    if len(ranking) != queries:
        raise ValueError(f"the ranking has {len(ranking)} queries, the ground truth {queries}")


def _check_rows(ranking: Ranking) -> None:
    in_order = np.sort(ranking, axis=1)
    wrong = np.flatnonzero((in_order < 0).any(axis=1) | (in_order[:, 1:] == in_order[:, :-1]).any(axis=1))
    if len(wrong):
        raise ValueError(f"the ranking of query {wrong[0]} holds a row twice or a negative row")


def _one_each(targets: Sequence[int]) -> list[tuple[int]]:
    return [(target,) for target in targets]
