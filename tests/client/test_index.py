"""Exact search against brute force, and an index on disk that is whole or refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import OutputError, SearchIndexError, SpaceMismatch, StoredDataError
from cirrus_client.gallery import Embedded, GalleryWriter, ImageFile, Shard, read_gallery
from cirrus_client.index import (
    BuildOptions,
    QuerySample,
    SearchKind,
    Storage,
    build_index,
    open_index,
    query_sample,
    read_query_sample,
    ties,
)
from cirrus_client.index.faiss_backend import FaissBackend
from cirrus_client.index.faiss_build import build_faiss, index_in_memory
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.index.items import located
from cirrus_client.index.vectors import GalleryVectors, Part
from tests.damage import replace_in_index, rewrite_record


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
        shard = Shard(tuple(files[start : start + shard_size]))
        writer.commit(shard, Embedded(embeddings[start : start + shard_size], shard.files))


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


APPROXIMATE = [kind for kind in SearchKind if kind is not SearchKind.EXACT]


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("storage", list(Storage))
@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.slow
def test_an_approximate_index_is_measured_on_queries_it_was_not_tuned_on(
    kind: SearchKind, vectors: int, storage: Storage
) -> None:
    gallery = unit_rows(3, 2000 * vectors, 16).reshape(2000, *space(16, vectors).item_shape)
    queries = unit_rows(4, 400, 16)
    options = BuildOptions(kind, storage, QuerySample(queries, "a test"))
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
    index, agreement = index_in_memory(space(16), gallery, options=BuildOptions(SearchKind.APPROXIMATE))
    assert agreement is None
    assert "agreement with exact search is not known" in caplog.text
    exact, found = (one.search(gallery[::10].copy(), 10).rows for one in (searched(space(16), gallery), index))
    shared = [len(set(left) & set(right)) for left, right in zip(exact, found, strict=True)]
    assert sum(shared) / exact.size > 0.99, "its own images find each other"


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.slow
def test_queries_that_lie_elsewhere_than_the_gallery_get_the_promised_agreement(kind: SearchKind) -> None:
    """The gallery lies in clusters and queries between them, where its own vectors are a bad guide."""
    generator = np.random.default_rng(0)
    centres = unit_rows(5, 50, 32)
    gallery = np.repeat(centres, 100, axis=0) + 0.05 * generator.standard_normal((5000, 32)).astype(np.float32)
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)
    options = BuildOptions(kind, queries=QuerySample(unit_rows(6, 1000, 32), "between the clusters"))
    index, agreement = index_in_memory(space(32), gallery, options=options)
    assert agreement is not None
    unseen = unit_rows(7, 500, 32)
    exact = GalleryVectors.in_memory(space(32), gallery).best_scores(unseen, 10)
    share = float((index.search(unseen, 10).scores >= exact[:, -1:] - 1e-5).mean())
    assert agreement.share > 0.97
    assert share == pytest.approx(agreement.share, abs=0.02)


@pytest.mark.parametrize("storage", list(Storage))
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_gallery_of_equal_images_always_gives_k_answers(kind: SearchKind, storage: Storage) -> None:
    gallery = np.repeat(unit_rows(1, 1, 16), 200, axis=0)
    options = BuildOptions(kind, storage, QuerySample(unit_rows(3, 20, 16), "a test"))
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


def test_a_value_of_the_gallery_that_is_not_finite_is_named_by_its_row() -> None:
    gallery = unit_rows(0, 30, 8)
    gallery[25, 3] = np.nan
    parts = tuple(Part(10, lambda start=start: gallery[start : start + 10]) for start in (0, 10, 20))
    with pytest.raises(SearchIndexError, match="gallery: row 25 holds values that are not finite"):
        list(GalleryVectors(space(8), parts).blocks())


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


@pytest.mark.parametrize(
    ("images", "path", "expected"),
    [
        ("https://cdn.example", "a cat #1.jpg", "https://cdn.example/a%20cat%20%231.jpg"),
        ("https://cdn.example", "50% off.jpg", "https://cdn.example/50%25%20off.jpg"),
        ("https://host/listing", "a%20cat.jpg", "https://host/listing/a%20cat.jpg"),
        ("s3://bucket/photos", "a cat #1.jpg", "s3://bucket/photos/a cat #1.jpg"),
        ("https://cdn.example", "https://host/a%20cat.jpg", "https://host/a%20cat.jpg"),
    ],
)
def test_an_image_is_where_its_store_has_it_whatever_its_name(images: str, path: str, expected: str) -> None:
    assert located(images, path) == expected


@pytest.mark.parametrize("images", [512, 1024, 4096])
def test_a_sample_has_vectors_of_every_place_among_those_of_an_image(images: int) -> None:
    places = np.tile(np.eye(32, dtype=np.float32), (images, 1, 1))
    sampled = GalleryVectors.in_memory(space(32, vectors=32), places).sample(512)
    assert np.bincount(sampled.argmax(axis=1), minlength=32).min() > 0.9 * len(sampled) / 32


def test_metadata_comes_with_the_images_that_it_names(tmp_path: Path) -> None:
    """In the place of a column of that name that the source had."""
    files = tuple(ImageFile(f"{number:06d}.jpg", 1, 1, metadata={"price": -1}) for number in range(30))
    writer = GalleryWriter.open(tmp_path / "gallery", images="/photos", space=space(8))
    writer.commit(Shard(files), Embedded(unit_rows(0, 30, 8), files))
    gallery = read_gallery(tmp_path / "gallery")
    metadata = pa.table({"image_path": ["000003.jpg", "000007.jpg", "unknown.jpg"], "price": [3, 7, 0]})
    build_index(gallery, tmp_path / "index", metadata=metadata)
    *items, below, behind = open_index(tmp_path / "index").items.rows([*range(30), -1, 30])
    assert below is behind is None
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
    content = manifest.read_text()
    manifest.write_text(content.replace('"count": 30', '"count": 31'))
    with pytest.raises(SearchIndexError, match=r"index\.json: it is corrupted: its content does not have the checksum"):
        open_index(tmp_path / "index")
    manifest.write_text(content)
    rewrite_record(manifest, count="many")
    with pytest.raises(SearchIndexError, match=r"index\.json: field 'count': .*found 'many'; build it") as invalid:
        open_index(tmp_path / "index")
    assert invalid.value.field == "count"
    assert "pydantic" not in str(invalid.value)
    manifest.write_text("{")
    with pytest.raises(SearchIndexError, match="it is not JSON"):
        open_index(tmp_path / "index")


def write_faiss(index: faiss.Index, path: Path) -> Path:
    faiss.write_index(index, str(path))
    return path


_KEPT_ALIVE: list[faiss.InvertedLists] = []


def _on_disk(index: faiss.IndexIVF, path: Path) -> faiss.IndexIVF:
    """Move an index's lists to a file of their own, which the index then names."""
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(path))
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        lists.add_entries(number, size, index.invlists.get_ids(number), index.invlists.get_codes(number))
    index.own_invlists = False
    index.replace_invlists(lists, False)
    _KEPT_ALIVE.append(lists)
    return index


def _ivf(metric: int = faiss.METRIC_INNER_PRODUCT) -> faiss.IndexIVFFlat:
    index = faiss.IndexIVFFlat(faiss.IndexFlat(8, metric), 8, 4, metric)
    index.train(unit_rows(0, 200, 8))
    return index


def _hnsw(damage: Callable[[Any], None]) -> Callable[[Path], faiss.IndexHNSWFlat]:
    def make(folder: Path) -> faiss.IndexHNSWFlat:
        index = faiss.IndexHNSWFlat(8, 32, faiss.METRIC_INNER_PRODUCT)
        index.add(unit_rows(0, 200, 8))
        index.hnsw.efSearch = 16
        damage(index)
        return index

    return make


def _lead_outside(index: faiss.IndexHNSWFlat) -> None:
    faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())[5] = 200


def _other_lists(index: faiss.IndexHNSWFlat) -> None:
    faiss.rev_swig_ptr(index.hnsw.offsets.data(), index.hnsw.offsets.size())[5] += 1


def _refined(folder: Path) -> faiss.IndexRefine:
    """Return codes of another kind with their exact vectors."""
    return faiss.IndexRefineFlat(faiss.IndexScalarQuantizer(8, faiss.ScalarQuantizer.QT_8bit, 0))


_FOREIGN = {
    "l2": (SearchKind.EXACT, lambda folder: faiss.IndexFlatL2(8), "IndexFlatL2, expected IndexFlatIP"),
    "pca": (SearchKind.EXACT, lambda folder: faiss.index_factory(8, "PCA4,Flat", 0), "IndexPreTransform"),
    "id map": (SearchKind.EXACT, lambda folder: faiss.index_factory(8, "IDMap,Flat", 0), "IndexIDMap"),
    "narrower": (SearchKind.EXACT, lambda folder: faiss.IndexFlatIP(4), "have 4 values, expected 8"),
    "approximate": (SearchKind.EXACT, lambda folder: _ivf(), "IndexIVFFlat, expected IndexFlatIP"),
    "exact": (SearchKind.APPROXIMATE, lambda folder: faiss.IndexFlatIP(8), "IndexFlatIP, expected IndexIVFFlat"),
    "approximate l2": (SearchKind.APPROXIMATE, lambda folder: _ivf(faiss.METRIC_L2), "inner product"),
    "graph leads outside": (SearchKind.HNSW, _hnsw(_lead_outside), "leads to vectors|can't be read"),
    "graph with other lists": (SearchKind.HNSW, _hnsw(_other_lists), "do not fit its levels|can't be read"),
    "codes": (SearchKind.RABITQ, _refined, "its codes are not RaBitQ's"),
    "on disk": (SearchKind.APPROXIMATE, lambda folder: _on_disk(_ivf(), folder / "lists"), "can't be read by FAISS"),
}


@pytest.mark.parametrize("case", list(_FOREIGN))
def test_a_faiss_file_is_not_believed_by_its_name(tmp_path: Path, case: str) -> None:
    kind, make, reason = _FOREIGN[case]
    vectors = unit_rows(0, 200, 8)
    write_gallery(tmp_path / "gallery", space(8), vectors, shard_size=100)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index", options=BuildOptions(kind))
    other = make(tmp_path)
    if not other.is_trained:
        other.train(vectors)
    if case == "id map":
        other.add_with_ids(vectors, np.arange(200))
    elif not other.ntotal:
        other.add(np.ascontiguousarray(vectors[:, : other.d]))
    write_faiss(other, tmp_path / "other.faiss")
    lists = tmp_path / "lists"
    if lists.exists():
        lists.unlink()
    replace_in_index(tmp_path / "index", "vectors.faiss", tmp_path / "other.faiss")
    with pytest.raises(SearchIndexError, match=reason) as refused:
        open_index(tmp_path / "index")
    assert refused.value.path == tmp_path / "index" / "vectors.faiss"
    assert not lists.exists()


def test_rows_that_no_image_belongs_to_are_refused(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 200, 8), shard_size=100)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index", options=BuildOptions(SearchKind.APPROXIMATE))
    other = _ivf()
    other.add_with_ids(unit_rows(0, 200, 8), np.arange(7, 207))
    write_faiss(other, tmp_path / "other.faiss")
    replace_in_index(tmp_path / "index", "vectors.faiss", tmp_path / "other.faiss")
    with pytest.raises(SearchIndexError, match="row numbers are not 0 to"):
        open_index(tmp_path / "index")


def test_the_images_of_another_index_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_gallery(tmp_path / name, space(8), unit_rows(len(name), 30, 8) * (1 if name == "one" else -1), 10)
        build_index(read_gallery(tmp_path / name), tmp_path / f"{name}.index")
    replace_in_index(tmp_path / "one.index", "items.parquet", tmp_path / "two.index" / "items.parquet")
    with pytest.raises(SearchIndexError, match=r"items\.parquet lists the images of another index"):
        open_index(tmp_path / "one.index")


@pytest.mark.slow
def test_an_index_that_is_replaced_while_it_is_opened_is_one_version(tmp_path: Path) -> None:
    """Two indexes take turns at one path. Each names its images after itself, and its vectors are its own."""
    first, second = unit_rows(0, 40, 8), unit_rows(1, 40, 8)
    for name, vectors in (("first", first), ("second", second)):
        writer = GalleryWriter.open(tmp_path / name, images=f"/{name}", space=space(8))
        files = tuple(ImageFile(f"{number:06d}.jpg", 1, 1) for number in range(40))
        writer.commit(Shard(files), Embedded(vectors, files))
    galleries = [read_gallery(tmp_path / name) for name in ("first", "second")]
    build_index(galleries[0], tmp_path / "index")
    ended = threading.Event()

    def replace() -> None:
        for turn in range(60):
            build_index(galleries[turn % 2], tmp_path / "index")
        ended.set()

    replacing = threading.Thread(target=replace)
    replacing.start()
    seen = set()
    while not ended.is_set():
        opened = open_index(tmp_path / "index")
        name = opened.items.images
        seen.add(name)
        vectors = first if name == "/first" else second
        found = opened.index.search(vectors, 1)
        np.testing.assert_array_equal(found.rows[:, 0], np.arange(40))
    replacing.join()
    assert seen == {"/first", "/second"}


def test_code_is_run_for_an_index_only_if_the_user_names_it(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    backend = "cirrus_client.index.faiss_backend:FaissBackend"
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index", backend=backend)
    with pytest.raises(SearchIndexError, match="if you trust it") as refused:
        open_index(tmp_path / "index")
    assert refused.value.field == "backend"
    assert len(open_index(tmp_path / "index", backend=backend).index) == 30
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    with pytest.raises(SearchIndexError, match="was built by faiss and not by"):
        open_index(tmp_path / "index", backend=backend)


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
        (unit_rows(0, 2, 8), 0, "k must be an integer of at least 1"),
        (np.full((1, 8), np.nan, dtype=np.float32), 5, "row 0 holds values that are not finite"),
    ],
)
def test_queries_that_do_not_fit_are_refused(queries: np.ndarray, k: int, reason: str) -> None:
    with pytest.raises(SearchIndexError, match=reason):
        searched(space(8), unit_rows(0, 30, 8)).search(queries, k)


def test_too_few_queries_are_refused_before_anything_is_built() -> None:
    options = BuildOptions(SearchKind.APPROXIMATE, queries=QuerySample(unit_rows(0, 1, 8), "one.npy"))
    with pytest.raises(SearchIndexError, match=r"one\.npy: 1 query embeddings.*give at least 2"):
        build_faiss(SimpleNamespace(space=space(8)), options)


def test_too_little_memory_names_what_would_fit(tmp_path: Path) -> None:
    class Huge:
        space, rows = space(8), {"shard": 2**50}

        def shard_embeddings(self, shard: str) -> np.ndarray:
            return unit_rows(0, 1, 8)

    with pytest.raises(SearchIndexError, match=r"takes about 33,554,432\.0 GiB: `cirrus index --plan` says"):
        FaissBackend().build(Huge(), tmp_path, BuildOptions())


def test_an_index_is_not_written_where_its_name_is_not_utf8(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 3, 8), shard_size=10)
    odd = os.fsdecode(b"odd\xff")
    with pytest.raises(OutputError, match="the path is not UTF-8"):
        build_index(read_gallery(tmp_path / "gallery"), tmp_path / odd)
    with pytest.raises(StoredDataError, match="the path is not UTF-8"):
        build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index", images=f"/{odd}")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    "line", ["[1]", "{", '{"image": 7}', '{"img": "a.jpg", "text": "x"}', '{"text": ["a"]}', "7", "[" * 100_000]
)
def test_a_line_that_is_no_query_is_named(tmp_path: Path, line: str, encoder) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(f'{{"text": "in blue", "image": "a.jpg"}}\n{line}\n')
    with pytest.raises(SearchIndexError, match=r"queries\.jsonl, line 2: .*each line is like"):
        read_query_sample(path, encoder.space, encoder)


def test_a_query_that_cannot_be_encoded_is_named_by_its_line(tmp_path: Path, zero_shot) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "red"}\n' * 40 + '{"image": "gone.jpg"}\n')
    with pytest.raises(SearchIndexError, match=r"queries\.jsonl, line 41: can't read image file .*gone\.jpg"):
        read_query_sample(path, zero_shot.space, zero_shot)


def test_queries_of_a_file_are_those_of_its_lines(tmp_path: Path, zero_shot, pictures, monkeypatch) -> None:
    """An image lies beside the file, and a text may hold line breaks of other scripts."""
    monkeypatch.setattr(query_sample, "_BATCH_SIZE", 2)
    content = (pictures / "000003.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content)
    lines = ['{"text": "in\u2028blue"}', '{"image": "a.jpg", "text": "red"}', '{"image": "a.jpg"}']
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    found = read_query_sample(tmp_path / "queries.jsonl", zero_shot.space, zero_shot).embeddings
    expected = zero_shot.encode_queries([None, content, content], ["in\u2028blue", "red", None])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(SpaceMismatch, match="the encoder's space differs from the gallery's in backbone"):
        read_query_sample(tmp_path / "queries.jsonl", space(64), zero_shot)


@pytest.fixture
def zero_shot(tiny_zero_shot_bundle) -> LocalEncoder:
    return LocalEncoder(tiny_zero_shot_bundle, engine="onnxruntime")


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize(("kinds", "most"), [(4, 16_384), (150, 20)], ids=["many of a kind", "pairs"])
def test_images_of_equal_bytes_come_in_the_order_of_their_rows_however_many_are_asked_for(
    tmp_path: Path, monkeypatch, vectors: int, kinds: int, most: int
) -> None:
    """So that pages of answers have every image once. most: images of one score that are looked for."""
    monkeypatch.setattr(ties, "_MOST_FETCHED", most)
    chance = np.random.default_rng(3)
    of_kind = unit_rows(1, kinds * vectors, 16).reshape(kinds, *space(16, vectors).item_shape)
    embeddings = of_kind[chance.integers(0, kinds, 300)]
    write_gallery(tmp_path / "gallery", space(16, vectors), embeddings, shard_size=300)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    index, queries = open_index(tmp_path / "index").index, unit_rows(2, 30, 16)
    among = chance.random(300) < 0.5
    whole, some = index.search(queries, 300), index.search_among(queries, 300, among)
    for hits in (whole, some):
        order = np.lexsort((hits.rows, -hits.scores))
        np.testing.assert_array_equal(order, np.broadcast_to(np.arange(order.shape[1]), order.shape))
    for k in (1, 2, 5, 40, 133):
        np.testing.assert_array_equal(index.search(queries, k).rows, whole.rows[:, :k])
        np.testing.assert_array_equal(index.search(queries[:1], k).rows, whole.rows[:1, :k])
        np.testing.assert_array_equal(index.search_among(queries, k, among).rows, some.rows[:, :k])
