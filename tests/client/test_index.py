"""Exact search against brute force, and an index on disk that is whole or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery import GalleryWriter, ImageFile, Shard, read_gallery
from cirrus_client.index import BuildOptions, QuerySample, SearchKind, Storage, build_index, open_index
from cirrus_client.index.faiss_build import index_in_memory
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.index.vectors import GalleryVectors, Part


def unit_rows(seed: int, rows: int, dim: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def space(dim: int, vectors: int = 1) -> SpaceSpec:
    similarity = Similarity.COSINE if vectors == 1 else Similarity.MAX_COSINE
    return SpaceSpec.of({"backbone": "test"}, dim=dim, vectors=vectors, similarity=similarity)


def searched(of: SpaceSpec, gallery: np.ndarray) -> FaissIndex:
    return index_in_memory(of, gallery)[0]


def write_gallery(root: Path, of: SpaceSpec, embeddings: np.ndarray, shard_size: int) -> None:
    writer = GalleryWriter.open(root, images="/photos", space=of)
    files = [ImageFile(f"{number:06d}.jpg", 1, 1) for number in range(len(embeddings))]
    for start in range(0, len(files), shard_size):
        shard = Shard.of(files[start : start + shard_size])
        writer.commit(shard, embeddings[start : start + shard_size], shard.files, [])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(1, 12), st.integers(1, 100), st.integers(0, 10**6))
def test_search_is_brute_force(rows: int, queries: int, k: int, seed: int) -> None:
    gallery, asked = unit_rows(seed, rows, 16), unit_rows(seed + 1, queries, 16)
    hits = searched(space(16), gallery).search(asked, k)
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
    hits = searched(space(12, vectors), gallery).search(asked, k)
    scores = np.einsum("qd,nvd->qnv", asked, gallery).max(axis=2)
    best = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(hits.scores, best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, hits.rows, axis=1), best, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in hits.rows.tolist())


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("storage", list(Storage))
def test_an_approximate_index_is_measured_on_queries_it_was_not_tuned_on(vectors: int, storage: Storage) -> None:
    gallery = unit_rows(3, 2000 * vectors, 16).reshape(2000, *space(16, vectors).item_shape)
    queries = unit_rows(4, 400, 16)
    options = BuildOptions(SearchKind.APPROXIMATE, storage, QuerySample(queries, "a test"))
    index, agreement = index_in_memory(space(16, vectors), gallery, options=options)
    assert agreement is not None
    assert (agreement.k, agreement.queries, agreement.source) == (10, 200, "a test")
    measured = queries[1::2]
    exact = searched(space(16, vectors), gallery).search(measured, 10)
    found = index.search(measured, 10)
    shared = [len(set(left) & set(right)) for left, right in zip(exact.rows, found.rows, strict=True)]
    assert agreement.share == pytest.approx(sum(shared) / exact.rows.size, abs=0.003)
    assert agreement.share > 0.97


def test_without_queries_no_agreement_is_promised(caplog) -> None:
    gallery = unit_rows(3, 3000, 16)
    _, agreement = index_in_memory(space(16), gallery, options=BuildOptions(SearchKind.APPROXIMATE))
    assert agreement is None
    assert "agreement with exact search is not known" in caplog.text


def test_queries_that_lie_elsewhere_than_the_gallery_get_the_promised_agreement() -> None:
    """The gallery lies in clusters and queries between them, where its own vectors are a bad guide."""
    generator = np.random.default_rng(0)
    centres = unit_rows(5, 50, 32)
    gallery = np.repeat(centres, 100, axis=0) + 0.05 * generator.standard_normal((5000, 32)).astype(np.float32)
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)
    options = BuildOptions(SearchKind.APPROXIMATE, queries=QuerySample(unit_rows(6, 1000, 32), "between the clusters"))
    index, agreement = index_in_memory(space(32), gallery, options=options)
    assert agreement is not None
    unseen = unit_rows(7, 500, 32)
    exact = GalleryVectors.in_memory(space(32), gallery).best_scores(unseen, 10)
    share = float((index.search(unseen, 10).scores >= exact[:, -1:] - 1e-5).mean())
    assert agreement.share > 0.97
    assert share == pytest.approx(agreement.share, abs=0.02)


@pytest.mark.parametrize("storage", list(Storage))
def test_a_gallery_of_equal_images_always_gives_k_answers(storage: Storage) -> None:
    gallery = np.repeat(unit_rows(1, 1, 16), 200, axis=0)
    options = BuildOptions(SearchKind.APPROXIMATE, storage, QuerySample(unit_rows(3, 20, 16), "a test"))
    index, agreement = index_in_memory(space(16), gallery, options=options)
    assert agreement is not None
    assert agreement.share == 1
    hits = index.search(unit_rows(2, 20, 16), 50)
    assert (hits.rows >= 0).all()
    assert all(len(set(row)) == 50 for row in hits.rows.tolist())


def test_half_precision_storage_says_how_well_it_agrees() -> None:
    gallery = unit_rows(3, 3000, 64)
    options = BuildOptions(storage=Storage.FLOAT16, queries=QuerySample(unit_rows(4, 100, 64), "a test"))
    index, agreement = index_in_memory(space(64), gallery, options=options)
    assert agreement is not None
    assert 0.95 < agreement.share <= 1
    exact = searched(space(64), gallery).search(unit_rows(5, 20, 64), 10)
    np.testing.assert_allclose(index.search(unit_rows(5, 20, 64), 10).scores, exact.scores, atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 30), st.integers(1, 4), st.integers(0, 10**6))
def test_reading_in_blocks_is_reading_at_once(images: int, per_part: int, vectors: int, seed: int) -> None:
    of = space(8, vectors)
    gallery = unit_rows(seed, images * vectors, 8).reshape(images, *of.item_shape)
    pieces = [gallery[start : start + per_part] for start in range(0, images, per_part)]
    streamed = GalleryVectors(of, tuple(Part(len(piece), lambda piece=piece: piece) for piece in pieces))
    queries = unit_rows(seed + 1, 5, 8)
    scores = np.einsum("qd,nvd->qnv", queries, gallery.reshape(images, vectors, 8)).max(axis=2)
    np.testing.assert_array_equal(np.concatenate(list(streamed.blocks())), gallery.reshape(-1, 8))
    np.testing.assert_allclose(streamed.best_scores(queries, 7), -np.sort(-scores, axis=1)[:, :7], atol=1e-5)
    rows = np.random.default_rng(seed).integers(0, images, (5, 3))
    np.testing.assert_allclose(streamed.scores_of(queries, rows), np.take_along_axis(scores, rows, axis=1), atol=1e-5)
    assert 0 < len(streamed.sample(10)) <= images * vectors


@pytest.mark.parametrize("kind", list(SearchKind))
def test_a_saved_index_answers_as_before_and_names_its_images(tmp_path: Path, kind: SearchKind) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 300, 8), shard_size=70)
    stored = read_gallery(tmp_path / "gallery")
    sample = QuerySample(unit_rows(2, 40, 8), "a test")
    manifest = build_index(stored, tmp_path / "index", options=BuildOptions(kind, queries=sample))
    opened = open_index(tmp_path / "index")
    assert opened.manifest == manifest
    assert (opened.index.space, len(opened.index)) == (space(8), 300)
    queries = unit_rows(1, 4, 8)
    hits = opened.index.search(queries, 5)
    scores = stored.embeddings @ queries.T
    for column, rows in enumerate(hits.rows):
        assert [item.id for item in opened.items.rows(rows.tolist())] == [stored.paths[row] for row in rows]
        np.testing.assert_allclose(hits.scores[column], scores[rows, column], atol=1e-6)
        if kind is SearchKind.EXACT:
            np.testing.assert_array_equal(rows, np.argsort(-scores[:, column], kind="stable")[:5])


def test_a_copied_index_finds_its_images_below_another_root(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")

    def first(images: str | None) -> str:
        return open_index(tmp_path / "index", images=images).items.rows([0])[0].image

    name = read_gallery(tmp_path / "gallery").paths[0]
    assert first(None) == f"/photos/{name}"
    assert first("/elsewhere") == f"/elsewhere/{name}"
    assert first("https://cdn.example/shop/") == f"https://cdn.example/shop/{name}"


def test_metadata_comes_with_the_images_that_it_names(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    gallery = read_gallery(tmp_path / "gallery")
    metadata = pa.table({"image_path": ["000003.jpg", "000007.jpg", "unknown.jpg"], "price": [3, 7, 0]})
    build_index(gallery, tmp_path / "index", metadata=metadata)
    items = open_index(tmp_path / "index").items.rows(range(30))
    prices = {item.id: item.metadata["price"] for item in items if item.metadata["price"] is not None}
    assert prices == {"000003.jpg": 3, "000007.jpg": 7}
    twice = pa.table({"image_path": ["000003.jpg", "000003.jpg"]})
    with pytest.raises(SearchIndexError, match="names some images twice"):
        build_index(gallery, tmp_path / "index", metadata=twice)


def test_a_damaged_index_is_refused_with_the_file_and_the_way_out(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    vectors, manifest = tmp_path / "index" / "vectors.faiss", tmp_path / "index" / "index.json"
    content = bytearray(vectors.read_bytes())
    content[len(content) // 2] ^= 0xFF
    vectors.write_bytes(bytes(content))
    with pytest.raises(SearchIndexError, match=r"vectors\.faiss is corrupted.*cirrus index") as refused:
        open_index(tmp_path / "index")
    assert refused.value.path == vectors
    vectors.unlink()
    with pytest.raises(SearchIndexError, match=r"vectors\.faiss is missing"):
        open_index(tmp_path / "index")
    spoilt = json.loads(manifest.read_text()) | {"count": "many"}
    manifest.write_text(json.dumps(spoilt))
    with pytest.raises(SearchIndexError, match=r"index\.json: field 'count': .*found 'many'; build it") as invalid:
        open_index(tmp_path / "index")
    assert invalid.value.field == "count"
    assert "pydantic" not in str(invalid.value)
    manifest.write_text("{")
    with pytest.raises(SearchIndexError, match="it is not JSON"):
        open_index(tmp_path / "index")


_BUILD = """
import resource, sys
from cirrus_client.gallery import read_gallery
from cirrus_client.index import BuildOptions, build_index
import faiss, pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build_index(read_gallery(sys.argv[1]), sys.argv[2], options=BuildOptions())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.slow
def test_building_takes_the_memory_of_the_index_and_a_shard(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(512), unit_rows(1, 100_000, 512), shard_size=10_000)
    command = [sys.executable, "-c", _BUILD, str(tmp_path / "gallery"), str(tmp_path / "index")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    index_bytes = (tmp_path / "index" / "vectors.faiss").stat().st_size
    # A shard has 20 MiB, a block 16 MiB; the gallery, which is as large as the index, does not fit in beside it.
    assert int(done.stdout) * 1024 < index_bytes + 100 * 2**20


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
        searched(space(8), unit_rows(0, 30, 8)).search(queries, k)
