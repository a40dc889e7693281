"""Metrics against cases worked by hand, and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cirrus_bench.retrieval import metrics

RANKING = np.array([[4, 2, 0, 1, 3], [1, 0, 3, 4, 2]])


def test_recall_is_whether_the_target_is_among_the_first() -> None:
    assert metrics.recall_at(RANKING, [2, 4], 1).tolist() == [0, 0]
    assert metrics.recall_at(RANKING, [2, 4], 2).tolist() == [1, 0]
    assert metrics.recall_at(RANKING, [2, 4], 4).tolist() == [1, 1]


def test_average_precision_at_k_with_several_truths() -> None:
    # query 0, truths 4, 0, 3: hits at places 1 and 3 of 4 -> (1/1 + 2/3) / min(3, 4)
    # query 1, truths 4, 2 at k = 4: hit at place 4 -> (1/4) / min(2, 4)
    found = metrics.average_precision_at(RANKING, [(4, 0, 3), (4, 2)], 4)
    assert found == pytest.approx([(1 + 2 / 3) / 3, (1 / 4) / 2])
    # k = 1 and three truths: the denominator is 1, a hit in the first place is everything
    assert metrics.average_precision_at(RANKING, [(4, 0, 3), (4, 2)], 1) == pytest.approx([1, 0])


def test_plain_and_trapezoidal_average_precision_differ_as_published() -> None:
    relevant = np.array([[True, False, True, False], [False, False, False, False]])
    # plain: (1/1 + 2/3) / 2; no relevant item: 0
    assert metrics.average_precision(relevant) == pytest.approx([(1 + 2 / 3) / 2, 0])
    # trapezoidal: place 0 -> (1 + 1)/2 = 1; place 2 -> (1/2 + 2/3)/2 = 7/12; over 2 + 1e-5
    assert metrics.trapezoidal_average_precision(relevant) == pytest.approx([(1 + 7 / 12) / (2 + 1e-5), 0])


def test_precision_is_the_share_of_relevant_items() -> None:
    assert metrics.precision_at(np.array([[True, False, True, True]]), 2).tolist() == [0.5]


def test_the_reference_leaves_the_ranking_and_a_subset_keeps_its_order() -> None:
    kept = metrics.without(RANKING, [2, 1])
    assert kept.tolist() == [[4, 0, 1, 3], [0, 3, 4, 2]]
    assert metrics.within(kept, [(3, 0), (2, 0, 4)]) == [[0, 3], [0, 4, 2]]


@given(st.permutations(list(range(12))), st.sets(st.integers(0, 11), min_size=1), st.integers(1, 12))
def test_average_precision_at_k_is_its_definition(order: list[int], truth: set[int], k: int) -> None:
    total = sum(
        len(truth.intersection(order[: place + 1])) / (place + 1) for place in range(k) if order[place] in truth
    )
    found = metrics.average_precision_at(np.array([order]), [sorted(truth)], k)
    assert found[0] == pytest.approx(total / min(len(truth), k))


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_plain_average_precision_over_a_whole_ranking_is_ap_at_its_length(flags: list[bool]) -> None:
    truth = [row for row, flag in enumerate(flags) if flag]
    if truth:
        at = metrics.average_precision_at(np.array([list(range(len(flags)))]), [truth], len(flags))
        assert metrics.average_precision(np.array([flags])) == pytest.approx(at)
