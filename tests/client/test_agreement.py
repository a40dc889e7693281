"""How two runs are compared."""

from __future__ import annotations

import numpy as np
import pytest

from cirrus_client.agreement import cosine_min


def test_ids_have_no_direction_and_count_by_the_share_that_is_equal() -> None:
    ids = np.zeros((2, 4), np.int64)
    assert cosine_min(ids, ids) == 1
    assert cosine_min(ids, np.array([[0, 0, 0, 0], [0, 0, 0, 7]])) == 0.75
    assert cosine_min(np.full((1, 4), 2), np.full((1, 4), 3)) == 0


@pytest.mark.parametrize("broken", [0.0, np.nan, np.inf])
def test_a_vector_without_a_direction_agrees_with_nothing(broken) -> None:
    vectors = np.eye(3, dtype=np.float32)
    vectors[1] = broken
    assert not cosine_min(vectors, vectors) >= -1
