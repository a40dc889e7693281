"""Exact search against brute force, and an index on disk that is whole or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.index import FaissIndex, SearchKind


def unit_rows(seed: int, rows: int, dim: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def space(dim: int, vectors: int = 1) -> SpaceSpec:
    similarity = Similarity.COSINE if vectors == 1 else Similarity.MAX_COSINE
    return SpaceSpec.of({"backbone": "test"}, dim=dim, vectors=vectors, similarity=similarity)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(1, 12), st.integers(1, 100), st.integers(0, 10**6))
def test_search_is_brute_force(rows: int, queries: int, k: int, seed: int) -> None:
    gallery, asked = unit_rows(seed, rows, 16), unit_rows(seed + 1, queries, 16)
    hits = FaissIndex(space(16), gallery).search(asked, k)
    scores = asked @ gallery.T
    best = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(hits.scores, best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, hits.rows, axis=1), best, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in hits.rows.tolist())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(1, 60), st.booleans(), st.integers(0, 10**6))
def test_several_vectors_an_item_is_brute_force_over_the_best(
    items: int, vectors: int, k: int, clustered: bool, seed: int
) -> None:
    """Clustered: the vectors of an item are near each other, so that few items fill the first places."""
    gallery = unit_rows(seed, items * vectors, 12).reshape(items, vectors, 12)
    if clustered:
        gallery = (0.05 * gallery + gallery[:, :1]).astype(np.float32)
    asked = unit_rows(seed + 1, 6, 12)
    hits = FaissIndex(space(12, vectors), gallery).search(asked, k)
    scores = np.einsum("qd,nvd->qnv", asked, gallery).max(axis=2)
    best = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(hits.scores, best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, hits.rows, axis=1), best, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in hits.rows.tolist())


@pytest.mark.parametrize("vectors", [1, 4])
def test_an_approximate_index_says_how_well_it_agrees(tmp_path, vectors: int) -> None:
    gallery = unit_rows(3, 2000 * vectors, 16).reshape(2000, *space(16, vectors).item_shape)
    index = FaissIndex(space(16, vectors), gallery, kind=SearchKind.APPROXIMATE)
    assert index.agreement is not None
    assert index.agreement >= 0.99
    asked = unit_rows(4, 50, 16)
    exact = FaissIndex(space(16, vectors), gallery).search(asked, 10)
    index.save(tmp_path)
    found = FaissIndex.open(tmp_path).search(asked, 10)
    shared = [len(set(left) & set(right)) for left, right in zip(exact.rows, found.rows, strict=True)]
    assert sum(shared) / exact.rows.size > 0.9


def test_a_saved_index_answers_as_before(tmp_path) -> None:
    index = FaissIndex(space(8), unit_rows(0, 30, 8))
    index.save(tmp_path)
    opened = FaissIndex.open(tmp_path)
    assert opened.space == index.space
    np.testing.assert_array_equal(opened.search(unit_rows(1, 4, 8), 5).rows, index.search(unit_rows(1, 4, 8), 5).rows)


def test_a_damaged_index_is_refused(tmp_path) -> None:
    FaissIndex(space(8), unit_rows(0, 30, 8)).save(tmp_path)
    vectors = tmp_path / "vectors.faiss"
    content = bytearray(vectors.read_bytes())
    content[len(content) // 2] ^= 0xFF
    vectors.write_bytes(bytes(content))
    with pytest.raises(SearchIndexError, match="corrupted"):
        FaissIndex.open(tmp_path)
    vectors.unlink()
    with pytest.raises(SearchIndexError, match="missing"):
        FaissIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("queries", "k", "reason"),
    [
        (unit_rows(0, 2, 9), 5, r"expected shape \[n, 8\]"),
        (unit_rows(0, 2, 8).astype(np.float64), 5, "expected float32"),
        (unit_rows(0, 2, 8), 0, "k must be at least 1"),
        (np.full((1, 8), np.nan, dtype=np.float32), 5, "row 0 holds values that are not finite"),
    ],
)
def test_queries_that_do_not_fit_are_refused(queries: np.ndarray, k: int, reason: str) -> None:
    with pytest.raises(SearchIndexError, match=reason):
        FaissIndex(space(8), unit_rows(0, 30, 8)).search(queries, k)
