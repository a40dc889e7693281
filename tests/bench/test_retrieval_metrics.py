"""Metrics against cases worked by hand, and against their definitions."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cirrus_bench.retrieval import metrics

RANKING = np.array([[4, 2, 0, 1, 3], [1, 0, 3, 4, 2]])


@st.composite
def rankings_with_truths(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], int]:
    size = draw(st.integers(1, 12))
    queries = draw(st.integers(1, 4))
    rankings = [draw(st.permutations(range(size))) for _ in range(queries)]
    truths = [draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True)) for _ in range(queries)]
    return rankings, truths, draw(st.integers(1, size))


def test_recall_is_whether_the_target_is_among_the_first() -> None:
    # target 2 is at place 2 of query 0; target 4 at place 4 of query 1
    assert metrics.recall_at_k(RANKING, [2, 4], 1).tolist() == [0, 0]
    assert metrics.recall_at_k(RANKING, [2, 4], 2).tolist() == [1, 0]
    assert metrics.recall_at_k(RANKING, [2, 4], 4).tolist() == [1, 1]


def test_precision_is_the_share_of_the_first_that_is_correct() -> None:
    # first three: 4 2 0 with truths 4, 0, 3 -> 2 of 3; 1 0 3 with truth 2 -> 0 of 3
    assert metrics.precision_at_k(RANKING, [(4, 0, 3), (2,)], 3) == pytest.approx([2 / 3, 0])


def test_precision_at_more_places_than_the_gallery_has_is_still_divided_by_them() -> None:
    assert metrics.precision_at_k(RANKING, [(4, 0, 3), (2,)], 200) == pytest.approx([3 / 200, 1 / 200])


def test_average_precision_at_k_with_several_truths() -> None:
    # query 0, truths 4, 0, 3, k = 4: hits at places 1 and 3 -> (1/1 + 2/3) / min(3, 4)
    # query 1, truths 4, 2, k = 4: hit at place 4 -> (1/4) / min(2, 4)
    found = metrics.average_precision_at_k(RANKING, [(4, 0, 3), (4, 2)], 4)
    assert found == pytest.approx([(1 + 2 / 3) / 3, (1 / 4) / 2])
    # k = 2: query 0 hits at place 1 -> 1 / min(3, 2); query 1 nothing
    assert metrics.average_precision_at_k(RANKING, [(4, 0, 3), (4, 2)], 2) == pytest.approx([1 / 2, 0])


def test_average_precision_at_the_whole_gallery_counts_every_truth() -> None:
    # query 0, truths 2, 3: places 2 and 5 -> (1/2 + 2/5) / 2; query 1, truths 1, 0: places 1 and 2 -> (1 + 1) / 2
    found = metrics.average_precision_at_k(RANKING, [(2, 3), (1, 0)], 5)
    assert found == pytest.approx([(1 / 2 + 2 / 5) / 2, 1])


def test_trapezoidal_average_precision_counts_the_positives_inside_the_first_k() -> None:
    # truths 4, 0, 3 at places 0, 2, 4, counted from 0, k = 4: place 0 -> (1 + 1)/2, place 2 -> (1/2 + 2/3)/2 = 7/12;
    # two positives are inside the first 4; query 1, truth 2 at place 4: none is inside
    found = metrics.trapezoidal_average_precision_at_k(RANKING, [(4, 0, 3), (2,)], 4)
    assert found == pytest.approx([(1 + 7 / 12) / (2 + 1e-5), 0])
    # k = 5: place 4 adds (2/4 + 3/5)/2 = 11/20; query 1: (0/4 + 1/5)/2 = 1/10
    found = metrics.trapezoidal_average_precision_at_k(RANKING, [(4, 0, 3), (2,)], 5)
    assert found == pytest.approx([(1 + 7 / 12 + 11 / 20) / (3 + 1e-5), (1 / 10) / (1 + 1e-5)])


def test_the_reference_leaves_the_ranking() -> None:
    assert metrics.without_reference(RANKING, [2, 1]).tolist() == [[4, 0, 1, 3], [0, 3, 4, 2]]


def test_a_cut_ranking_without_its_reference_loses_its_last_place() -> None:
    # the first three of query 0 are 4 2 0: 3 is not there; of query 1 they are 1 0 3: 0 is
    assert metrics.without_reference(RANKING[:, :3], [3, 0]).tolist() == [[4, 2], [1, 3]]


def test_subset_recall_ranks_the_subset_alone() -> None:
    # subset 0, 1, 3 of query 0 in its order: 0 1 3; subset 2, 3, 4 of query 1: 3 4 2
    subsets = [(3, 1, 0), (2, 3, 4)]
    assert metrics.within_subset(RANKING, subsets).tolist() == [[0, 1, 3], [3, 4, 2]]
    assert metrics.subset_recall_at_k(RANKING, [0, 2], subsets, 1).tolist() == [1, 0]
    assert metrics.subset_recall_at_k(RANKING, [0, 2], subsets, 2).tolist() == [1, 0]
    assert metrics.subset_recall_at_k(RANKING, [0, 2], subsets, 3).tolist() == [1, 1]


def test_cirr_leaves_the_reference_out_before_it_counts() -> None:
    # query 0 without its reference 4: 2 0 1 3 -> target 2 comes first; query 1 without 1: 0 3 4 2
    kept = metrics.without_reference(RANKING, [4, 1])
    assert metrics.recall_at_k(kept, [2, 4], 1).tolist() == [1, 0]
    assert metrics.subset_recall_at_k(kept, [2, 4], [(2, 3), (4, 2)], 1).tolist() == [1, 1]


@given(rankings_with_truths())
def test_average_precision_is_its_definition(case: tuple[list[list[int]], list[list[int]], int]) -> None:
    rankings, truths, k = case
    expected = [
        sum(
            sum(row in truth for row in ranking[:place]) / place
            for place in range(1, k + 1)
            if ranking[place - 1] in truth
        )
        / min(len(truth), k)
        for ranking, truth in zip(rankings, truths, strict=True)
    ]
    assert metrics.average_precision_at_k(np.array(rankings), truths, k) == pytest.approx(expected)


@given(rankings_with_truths())
def test_trapezoidal_average_precision_is_its_definition(case: tuple[list[list[int]], list[list[int]], int]) -> None:
    rankings, truths, k = case
    expected = []
    for ranking, truth in zip(rankings, truths, strict=True):
        places = [place for place, row in enumerate(ranking[:k]) if row in truth]
        total = 0.0
        for earlier, place in enumerate(places):
            before = earlier / place if place else 1.0
            total += (before + (earlier + 1) / (place + 1)) / 2
        expected.append(total / (len(places) + 1e-5))
    assert metrics.trapezoidal_average_precision_at_k(np.array(rankings), truths, k) == pytest.approx(expected)


@given(rankings_with_truths())
def test_recall_and_precision_are_their_definitions(case: tuple[list[list[int]], list[list[int]], int]) -> None:
    rankings, truths, k = case
    hits = [sum(row in truth for row in ranking[:k]) for ranking, truth in zip(rankings, truths, strict=True)]
    assert metrics.precision_at_k(np.array(rankings), truths, k) == pytest.approx([count / k for count in hits])
    targets = [truth[0] for truth in truths]
    found = metrics.recall_at_k(np.array(rankings), targets, k)
    assert found.tolist() == [ranking.index(target) < k for ranking, target in zip(rankings, targets, strict=True)]


@pytest.mark.parametrize(
    ("ranking", "targets", "k", "message"),
    [
        (RANKING, [2, 4], 6, "k is 6, and the ranking has 5 places"),
        (RANKING, [2, 4], 0, "k is 0"),
        (RANKING, [2], 1, "the ranking has 2 queries, the ground truth 1"),
        (RANKING[0], [2], 1, "a ranking is int64 [Q, K], found int64 [5]"),
        (RANKING.astype(np.float32), [2, 4], 1, "found float32 [2, 5]"),
        (np.array([[0, 1], [3, 3]]), [0, 1], 2, "the ranking of query 1 holds a row twice"),
        (np.array([[0, -1]]), [0], 2, "the ranking of query 0 holds a row twice or a negative row"),
    ],
)
def test_a_ranking_that_does_not_fit_is_refused(
    ranking: metrics.Ranking, targets: list[int], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        metrics.recall_at_k(ranking, targets, k)


def test_average_precision_without_ground_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 has no ground truth"):
        metrics.average_precision_at_k(RANKING, [(1,), ()], 2)


def test_a_subset_outside_its_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="the ranking of query 1 lacks members of its subset"):
        metrics.within_subset(RANKING[:, :2], [(4, 2), (1, 3)])
    with pytest.raises(ValueError, match=r"subsets of one size expected, found sizes \[1, 2\]"):
        metrics.within_subset(RANKING, [(4, 2), (1,)])
