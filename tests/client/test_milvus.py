"""An index in Milvus answers as FAISS does, filtered or not, and changes while it is searched."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

pytest.importorskip("milvus_lite", reason="Milvus is not installed (pip install 'cirrus-cir[milvus-lite]')")
pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'cirrus-cir[search]')")
pytest.importorskip("fastapi", reason="the random filters are those of the service's tests")

from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import InvalidFilter, SearchIndexError, ServerUnavailable, SpaceMismatch
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import BuildOptions, SavedIndex, SearchKind, Storage, build_index, open_index
from cirrus_client.index import saved as saving
from cirrus_client.index.distinct import search_distinct
from cirrus_client.index.filter_models import Filter
from cirrus_client.index.milvus import MilvusIndex, connection
from cirrus_client.index.milvus import collection as collections
from cirrus_client.index.milvus.connection import connected
from cirrus_client.index.milvus.fields import VECTOR
from cirrus_client.retriever import open_retriever
from tests.client.test_index import space, unit_rows, write_gallery
from tests.damage import replace_in_index, rewrite_record
from tests.service.test_filters import TYPES, columns, random_filter

pytestmark = pytest.mark.slow

_FILTER: TypeAdapter[Any] = TypeAdapter(Filter)
QUERIES = 500
ODD = 'a "column" of\\ tags'
HARD_TEXTS = ['"', "\\", "a\\", "'", '\\"', "x\ny", "\t\x01", "日本", "🦜", "%_", "' or 1 == 1 or '", "{c0}", ""]


def options(folder: Path, name: str = "catalogue", **more: Any) -> BuildOptions:
    return BuildOptions(uri=str(folder / "milvus.db"), collection=name, **more)


def built(folder: Path, embeddings: np.ndarray, metadata: pa.Table | None = None) -> tuple[SavedIndex, SavedIndex]:
    """Return the same gallery as an index of FAISS and as one of Milvus."""
    vectors = embeddings.shape[1] if embeddings.ndim == 3 else 1
    write_gallery(folder / "gallery", space(embeddings.shape[-1], vectors), embeddings, shard_size=170)
    gallery = read_gallery(folder / "gallery")
    build_index(gallery, folder / "faiss", metadata=metadata)
    build_index(gallery, folder / "milvus", backend="milvus", options=options(folder), metadata=metadata)
    return open_index(folder / "faiss"), open_index(folder / "milvus")


def named(count: int) -> list[str]:
    return [f"{number:06d}.jpg" for number in range(count)]


def table_of(held: dict[str, list[Any]]) -> pa.Table:
    count = len(next(iter(held.values())))
    typed = {name: pa.array(values, TYPES[name]) for name, values in held.items()}
    texts = pa.array([None if n % 17 == 0 else HARD_TEXTS[n % len(HARD_TEXTS)] for n in range(count)], pa.string())
    tags = pa.array([None if n % 9 == 0 else [str(n), "é"] for n in range(count)])
    return pa.table({"image_path": named(count), **typed, ODD: texts, "tags": tags})


@pytest.fixture(scope="module")
def metadata() -> pa.Table:
    return table_of(columns(7))


@pytest.fixture(scope="module", params=[1, 8], ids=["one-vector", "8-vectors"])
def both(request, metadata, tmp_path_factory) -> tuple[SavedIndex, SavedIndex]:
    count = metadata.num_rows
    embeddings = unit_rows(0, count * request.param, 16).reshape(count, request.param, 16)
    if request.param > 1:  # near each other, so that few items fill the first places
        embeddings = 0.3 * embeddings + embeddings[:, :1]
        embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    embeddings = embeddings[:, 0] if request.param == 1 else embeddings
    folder = tmp_path_factory.mktemp("both")
    return built(folder, np.ascontiguousarray(embeddings, dtype=np.float32), metadata)


def filter_of(tree: dict[str, Any]) -> Any:
    return _FILTER.validate_python(tree)


def same_answers(one, other) -> None:
    """Scores agree, and so do rows, but where scores are as good as equal."""
    np.testing.assert_allclose(other.scores, one.scores, atol=1e-5)
    differing = one.rows != other.rows
    assert differing.mean() < 0.001
    gaps = np.abs(np.diff(one.scores, axis=1))
    for query, place in zip(*np.nonzero(differing), strict=True):
        assert gaps[query, max(0, place - 1) : place + 1].min() < 1e-5


def test_the_ten_best_of_500_queries_are_those_of_faiss(both) -> None:
    faiss, milvus = both
    queries = unit_rows(1, QUERIES, 16)
    assert len(milvus.index) == len(milvus.items) == len(faiss.index)
    same_answers(faiss.index.search(queries, 10), milvus.index.search(queries, 10))


@pytest.mark.parametrize("k", [1, 7, 299, 300, 1000])
def test_any_number_of_answers_is_that_of_faiss(both, k: int) -> None:
    faiss, milvus = both
    queries = unit_rows(2, 3, 16)
    same_answers(faiss.index.search(queries, k), milvus.index.search(queries, k))


def test_more_answers_than_milvus_returns_at_once_are_those_of_faiss(both, monkeypatch) -> None:
    """Milvus returns 16,384 vectors at most; here 40, so that the search goes on among the items not yet found."""
    faiss, milvus = both
    from cirrus_client.index.milvus import index as searching

    monkeypatch.setattr(searching, "MOST_ROWS", 40)
    queries = unit_rows(3, 4, 16)
    same_answers(faiss.index.search(queries, 90), milvus.index.search(queries, 90))
    wanted = filter_of({"column": "stock", "op": "not_null"})
    among, expression = faiss.items.select(wanted), milvus.items.select(wanted)
    same_answers(faiss.index.search_among(queries, 90, among), milvus.index.search_among(queries, 90, expression))


def test_filtered_answers_of_500_queries_are_those_of_faiss(both) -> None:
    faiss, milvus = both
    queries = unit_rows(4, QUERIES, 16)
    wanted = filter_of(
        {
            "and": [
                {"column": "brand", "op": "in", "value": ["a", "b", "é"]},
                {"not": {"column": "price", "op": "<", "value": 1}},
            ]
        }
    )
    among = faiss.items.select(wanted)
    assert 20 < among.sum() < 200
    same_answers(
        faiss.index.search_among(queries, 10, among),
        milvus.index.search_among(queries, 10, milvus.items.select(wanted)),
    )


def selected(milvus: SavedIndex, wanted: Any) -> set[int]:
    """Return all rows in a filter, by searching for more than there are."""
    rows = milvus.index.search_among(unit_rows(5, 1, 16), 1000, milvus.items.select(wanted)).rows
    return set(rows[0].tolist())


@pytest.mark.parametrize("both", [1], indirect=True, ids=["one-vector"])
def test_300_random_trees_select_what_they_select_for_faiss(both, metadata) -> None:
    faiss, milvus = both
    held = {name: metadata[name].to_pylist() for name in (*TYPES, ODD)}
    chance = random.Random(11)
    sizes = set()
    for _ in range(300):
        tree = random_filter(chance, held)
        expected = set(np.flatnonzero(faiss.items.select(filter_of(tree))).tolist())
        assert selected(milvus, filter_of(tree)) == expected, tree
        sizes.add(len(expected))
    assert len(sizes) > 30, "the trees hardly differ"


@pytest.mark.parametrize("both", [1], indirect=True, ids=["one-vector"])
def test_any_text_is_a_value_and_never_an_expression(both) -> None:
    faiss, milvus = both
    for text, op in itertools.product(HARD_TEXTS, ("==", "!=", "<", ">=")):
        wanted = filter_of({"column": ODD, "op": op, "value": text})
        assert selected(milvus, wanted) == set(np.flatnonzero(faiss.items.select(wanted)).tolist())


@pytest.mark.parametrize(
    "node",
    [
        {"column": "colour", "op": "==", "value": "a"},
        {"column": "price", "op": "==", "value": "20"},
        {"column": "tags", "op": "==", "value": "20"},
        {"column": "since", "op": "<", "value": "May"},
        {"and": [{"or": []}, {"not": {"column": "x", "op": "null"}}]},
    ],
)
def test_a_filter_that_does_not_fit_is_refused_as_faiss_refuses_it(both, node) -> None:
    places = []
    for saved in both:
        with pytest.raises(InvalidFilter) as refused:
            saved.items.select(filter_of(node))
        places.append(refused.value.place)
    assert places[0] == places[1]


def test_items_are_those_of_the_parquet_file(both) -> None:
    faiss, milvus = both
    rows = [3, 299, 0, 3, 17, 34]
    kept, found = faiss.items.rows(rows), milvus.items.rows(rows)
    assert [(item.id, item.image) for item in found] == [(item.id, item.image) for item in kept]
    for one, other in zip(kept, found, strict=True):
        assert json.dumps(one.metadata, default=str) == json.dumps(other.metadata, default=str)
        assert {name: type(value) for name, value in one.metadata.items()} == {
            name: type(value) for name, value in other.metadata.items()
        }
    assert milvus.items.rows([10**12]) == [None]
    assert milvus.items.find("000017.jpg") == faiss.items.find("000017.jpg")
    assert milvus.items.find('" or 1 == 1') is None
    assert list(milvus.items.ids()) == list(faiss.items.ids())
    assert milvus.items.columns() == json_of(faiss.items.columns())
    for column in ("brand", "stock", "since", "sold", "price"):
        one, other = (same_group(saved.items.groups(column).numbers(np.arange(300))) for saved in both)
        assert one == other


def json_of(summary: list[Any]) -> list[Any]:
    return [type(one).model_validate_json(one.model_dump_json()) for one in summary]


def same_group(numbers: np.ndarray) -> list[int]:
    """Number groups by their first member, so that two numberings can be compared."""
    first: dict[int, int] = {}
    return [-1 if number < 0 else first.setdefault(number, place) for place, number in enumerate(numbers.tolist())]


def test_vectors_come_back_as_they_were_stored(both) -> None:
    rows = np.array([5, 0, 299, 5])
    np.testing.assert_array_equal(both[1].index.vectors(rows), both[0].index.vectors(rows))
    assert not both[1].index.vectors(np.array([10**12])).any()


@pytest.fixture
def small(tmp_path: Path) -> SavedIndex:
    """An index of forty items that a test may change."""
    metadata = pa.table({"image_path": named(40), "price": [float(n) for n in range(40)], "brand": ["a"] * 40})
    return built(tmp_path, unit_rows(6, 40, 8), metadata)[1]


def new_items(ids: list[str], **columns: Any) -> pa.Table:
    return pa.table({"image_path": ids, **columns})


def test_an_upsert_and_a_delete_are_seen_by_the_next_search(small: SavedIndex) -> None:
    index = small.index
    assert isinstance(index, MilvusIndex)
    fresh = unit_rows(7, 2, 8)
    index.upsert(new_items(["new.jpg", "000003.jpg"], price=[1.5, None]), fresh)
    rows = index.search(fresh, 1).rows[:, 0]
    found = small.items.rows(rows.tolist())
    assert [item.id for item in found] == ["new.jpg", "000003.jpg"]
    assert [item.metadata for item in found] == [{"price": 1.5, "brand": None}, {"price": None, "brand": None}]
    assert rows[1] == 3
    assert rows[0] > 40
    assert len(index) == len(small.items) == 41
    among = small.items.select(filter_of({"column": "brand", "op": "null"}))
    assert set(index.search_among(fresh[:1], 50, among).rows[0].tolist()) == set(rows.tolist())
    assert index.delete(["new.jpg", "000005.jpg", "unknown.jpg"]) == 2
    assert not set(index.search(fresh, 50).rows.ravel().tolist()) & {int(rows[0]), 5}
    assert small.items.rows([int(rows[0]), 5, 6])[:2] == [None, None]
    assert (small.items.find("000005.jpg"), len(index)) == (None, 39)
    index.upsert(new_items(["new.jpg"]), fresh[:1])
    assert index.search(fresh[:1], 1).rows[0, 0] > rows[0], "a row is never used again"


def test_items_of_several_vectors_are_changed_as_wholes(tmp_path: Path) -> None:
    """After each change, scores are those of brute force over what is there now."""
    vectors = unit_rows(9, 34 * 4, 8).reshape(34, 4, 8)
    saved = built(tmp_path, vectors[:30])[1]
    queries = unit_rows(10, 20, 8)
    there = dict(zip(named(30), vectors[:30], strict=True))

    def check() -> None:
        hits = saved.index.search(queries, 10)
        scores = np.einsum("qd,nvd->qnv", queries, np.stack(list(there.values()))).max(axis=2)
        np.testing.assert_allclose(hits.scores, -np.sort(-scores, axis=1)[:, :10], atol=1e-5)
        assert len(saved.index) == len(there)
        rows = hits.rows[0]
        items = saved.items.rows(rows.tolist())
        np.testing.assert_array_equal(saved.index.vectors(rows), np.stack([there[item.id] for item in items]))

    changed = ["000003.jpg", "new.jpg", "newer.jpg", "000029.jpg"]
    saved.index.upsert(new_items(changed), vectors[30:])
    there |= dict(zip(changed, vectors[30:], strict=True))
    check()
    gone = ["new.jpg", "000003.jpg", "000011.jpg"]
    assert saved.index.delete(gone) == 3
    for id in gone:
        del there[id]
    check()


@pytest.mark.parametrize("column", ["price", "narrow", "stock", "sold", "seen", "since", "brand"])
def test_the_best_image_of_each_value_is_that_of_faiss(both, column: str) -> None:
    """Zero is two values that compare as one, and NaN and infinity have no literal."""
    for query in unit_rows(2, 3, 16):
        best = [search_distinct(one.index, query[None], 12, one.items.groups(column)) for one in both]
        same_answers(*best)


@pytest.mark.parametrize("column", ["price", "narrow", "stock", "sold", "seen", "since", "brand"])
def test_the_best_image_of_each_value_among_none_is_none(both, column: str) -> None:
    for one in both:
        none = one.items.select(filter_of({"column": "brand", "op": "==", "value": "no such brand"}))
        hits = search_distinct(one.index, unit_rows(2, 1, 16), 12, one.items.groups(column), none)
        assert not np.any(hits.rows >= 0)


@pytest.mark.parametrize("backend", ["faiss", "milvus"])
def test_a_retriever_answers_the_best_image_of_each_value(backend: str, bundle, photos: Path, tmp_path: Path) -> None:
    encoder = LocalEncoder(bundle)
    embed_gallery(photos, tmp_path / "gallery", encoder)
    products = [None if number % 7 == 0 else f"product {number // 20}" for number in range(60)]
    metadata = pa.table({"image_path": named(60), "product": products})
    settings = options(tmp_path) if backend == "milvus" else {}
    gallery = read_gallery(tmp_path / "gallery")
    build_index(gallery, tmp_path / "index", backend=backend, options=settings, metadata=metadata)
    retriever = open_retriever(encoder, tmp_path / "index")
    query = {"image": photos / "000007.jpg", "text": "in blue"}
    of = {match.id: match.metadata.get("product") for match in retriever.search(**query, k=60)}
    for among, wanted in ((None, set(of)), ({"column": "product", "op": "not_null"}, {id for id in of if of[id]})):
        best = [id for id in of if id in wanted]
        kept = [id for place, id in enumerate(best) if of[id] is None or of[id] not in map(of.get, best[:place])]
        for k in (1, 2, 3, 60):
            found = retriever.search(**query, k=k, filter=among, unique="product")
            assert [match.id for match in found] == kept[:k]
            assert [match.rank for match in found] == list(range(1, len(found) + 1))
    with pytest.raises(InvalidFilter) as unknown:
        retriever.search(**query, unique="colour")
    assert unknown.value.place == "unique"


def test_a_retriever_answers_from_milvus_under_a_filter(bundle, photos: Path, tmp_path: Path) -> None:
    encoder = LocalEncoder(bundle)
    embed_gallery(photos, tmp_path / "gallery", encoder)
    metadata = pa.table({"image_path": named(60), "price": list(range(60))})
    gallery = read_gallery(tmp_path / "gallery")
    build_index(gallery, tmp_path / "faiss", metadata=metadata)
    build_index(gallery, tmp_path / "milvus", backend="milvus", options=options(tmp_path), metadata=metadata)
    cheap = {"column": "price", "op": "<", "value": 20}
    answers = []
    for name in ("faiss", "milvus"):
        retriever = open_retriever(encoder, tmp_path / name)
        answers.append(retriever.search(image=photos / "000007.jpg", text="in blue", k=30, filter=cheap))
        for wrong in ({"column": "colour", "op": "null"}, {"column": "price"}, []):
            with pytest.raises(InvalidFilter):
                retriever.search(text="in blue", image=photos / "000007.jpg", filter=wrong)
    assert [match.id for match in answers[0]] == [match.id for match in answers[1]]
    assert sorted(match.id for match in answers[1]) == named(20)
    assert all(Path(match.image).is_file() for match in answers[1])
    with pytest.raises(SearchIndexError, match=r"does not pickle; .*open_index"):
        pickle.dumps(retriever)


def test_an_image_is_found_by_its_bytes_after_an_upsert(small: SavedIndex) -> None:
    import hashlib

    digest = pa.array([hashlib.sha256(b"an image").digest()], pa.binary(32))
    small.index.upsert(pa.table({"image_path": ["000002.jpg"], "cirrus:sha256": digest}), unit_rows(8, 1, 8))
    assert small.items.same_bytes(b"an image") == [2]
    assert small.items.same_bytes(b"another") == []


@pytest.mark.parametrize(
    ("items", "embeddings", "message"),
    [
        (new_items(["a"]), unit_rows(0, 1, 9), r"expected shape \[n, 8\]"),
        (new_items(["a"]), unit_rows(0, 1, 8).astype(np.float64), "expected float32"),
        (new_items(["a"]), np.full((1, 8), np.nan, np.float32), "not finite"),
        (new_items(["a"]), unit_rows(0, 2, 8), "embeddings of 2 items"),
        (new_items(["a", "a"]), unit_rows(0, 2, 8), "some images twice"),
        (new_items(["a"], colour=["red"]), unit_rows(0, 1, 8), "no column 'colour'"),
        (new_items(["a"], price=["red"]), unit_rows(0, 1, 8), "'price' is string"),
        (new_items(["a"], brand=["x" * 70_000]), unit_rows(0, 1, 8), "70,000 bytes"),
        (pa.table({"id": ["a"]}), unit_rows(0, 1, 8), "no column 'image_path'"),
    ],
)
def test_an_upsert_that_does_not_fit_is_refused_and_changes_nothing(small, items, embeddings, message) -> None:
    with pytest.raises(SearchIndexError, match=message):
        small.index.upsert(items, embeddings)
    assert len(small.index) == 40


def test_threads_search_while_others_upsert_and_delete(small: SavedIndex, tmp_path: Path) -> None:
    """What never changes is found by every search, and each writer finds what it wrote, and not what it removed.

    A writer has opened the index for itself.
    """
    index, errors = small.index, []
    lasting = unit_rows(6, 40, 8)[:10]
    ended = threading.Event()

    def guarded(job) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        while not ended.is_set():
            np.testing.assert_array_equal(index.search(lasting, 1).rows[:, 0], np.arange(10))
            items = small.items.rows(index.search(lasting, 20).rows[0].tolist())
            assert all(item is None or item.id for item in items)

    def write(writer: int) -> None:
        own = open_index(tmp_path / "milvus").index
        for turn in range(8):
            id, vector = f"writer {writer}, {turn}.jpg", unit_rows(100 * writer + turn, 1, 8)
            own.upsert(new_items([id]), vector)
            (row,) = index.search(vector, 1).rows[0]
            assert small.items.rows([int(row)])[0].id == id
            assert own.delete([id]) == 1
            assert row not in index.search(vector, 5).rows

    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(3)]
    writers = [threading.Thread(target=guarded, args=(lambda writer=n: write(writer + 1),)) for n in range(2)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    for thread in readers:
        thread.join()
    assert errors == []


def test_a_rebuild_makes_a_collection_of_its_own_and_keeps_one_before(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    gallery = read_gallery(tmp_path / "gallery")
    opened = []
    for _ in range(3):
        build_index(gallery, tmp_path / "index", backend="milvus", options=options(tmp_path))
        opened.append(open_index(tmp_path / "index"))
    queries = unit_rows(1, 2, 8)
    same_answers(opened[1].index.search(queries, 5), opened[2].index.search(queries, 5))
    with pytest.raises(SearchIndexError):
        opened[0].index.search(queries, 5)


def test_a_name_belongs_to_one_index_wherever_its_folder_is(small: SavedIndex, tmp_path: Path) -> None:
    queries, before = unit_rows(1, 5, 8), small.index.search(unit_rows(1, 5, 8), 5)
    gallery = read_gallery(tmp_path / "gallery")
    write_gallery(tmp_path / "others", space(8), unit_rows(9, 20, 8), shard_size=10)
    others = read_gallery(tmp_path / "others")
    for _ in range(2):
        with pytest.raises(
            SearchIndexError, match=r"is of another index than the one at .*: give --out that one's folder"
        ):
            build_index(others, tmp_path / "others.index", backend="milvus", options=options(tmp_path))
    assert not (tmp_path / "others.index").exists()
    build_index(others, tmp_path / "others.index", backend="milvus", options=options(tmp_path, "others"))
    with pytest.raises(SearchIndexError, match="is of another index"):
        build_index(others, tmp_path / "others.index", backend="milvus", options=options(tmp_path))
    assert len(open_index(tmp_path / "others.index").index) == 20
    (tmp_path / "milvus").rename(tmp_path / "moved")
    for _ in range(2):
        build_index(gallery, tmp_path / "moved", backend="milvus", options=options(tmp_path))
        same_answers(before, open_index(tmp_path / "moved").index.search(queries, 5))


def test_collections_that_are_only_named_like_builds_stay(small: SavedIndex, tmp_path: Path) -> None:
    client = connected(str(tmp_path / "milvus.db"), named=True)
    client.create_collection("catalogue_1700000000_0123abcd", dimension=8)
    for _ in range(2):
        build_index(
            read_gallery(tmp_path / "gallery"), tmp_path / "milvus", backend="milvus", options=options(tmp_path)
        )
    assert "catalogue_1700000000_0123abcd" in client.list_collections()


def test_vectors_of_another_space_are_refused(tmp_path: Path) -> None:
    other = SpaceSpec.of({"backbone": "another"}, dim=8, vectors=1, similarity=Similarity.COSINE)
    for name, of in (("one", space(8)), ("two", other)):
        write_gallery(tmp_path / name, of, unit_rows(0, 30, 8), shard_size=10)
    one, two = read_gallery(tmp_path / "one"), read_gallery(tmp_path / "two")
    build_index(one, tmp_path / "one.index", backend="milvus", options=options(tmp_path))
    with pytest.raises(SpaceMismatch, match="name another with --collection"):
        build_index(two, tmp_path / "two.index", backend="milvus", options=options(tmp_path))
    assert not (tmp_path / "two.index").exists()
    assert len(open_index(tmp_path / "one.index").index) == 30
    build_index(two, tmp_path / "two.index", backend="milvus", options=options(tmp_path, "another"))
    replace_in_index(tmp_path / "two.index", "milvus.json", tmp_path / "one.index" / "milvus.json")
    with pytest.raises(SpaceMismatch, match="has vectors of space"):
        open_index(tmp_path / "two.index")


def test_a_collection_that_is_gone_or_not_ours_is_refused(small: SavedIndex, tmp_path: Path) -> None:
    gallery, client = read_gallery(tmp_path / "gallery"), connected(str(tmp_path / "milvus.db"), named=True)
    client.create_collection("mine", dimension=8)
    with pytest.raises(SearchIndexError, match="did not make"):
        build_index(gallery, tmp_path / "other", backend="milvus", options=options(tmp_path, "mine"))
    place = json.loads((tmp_path / "milvus" / "milvus.json").read_text())
    client.drop_alias("catalogue")
    client.drop_collection(place["collection"])
    with pytest.raises(SearchIndexError, match="has no collection catalogue_"):
        open_index(tmp_path / "milvus")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"uri": None}, "needs an address"),
        ({"collection": None}, "needs an address"),
        ({"collection": "a b"}, "can't be the name"),
        ({"uri": "http://user:secret@localhost:19530"}, "has a user in it"),
        ({"uri": "ftp://localhost"}, "no address of Milvus"),
        ({"kind": SearchKind.APPROXIMATE}, "searches exactly"),
        ({"storage": Storage.FLOAT16}, "searches exactly"),
    ],
)
def test_options_that_do_not_fit_name_the_cure(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    with pytest.raises(SearchIndexError, match=message) as refused:
        build_index(
            read_gallery(tmp_path / "gallery"),
            tmp_path / "index",
            backend="milvus",
            options=replace(options(tmp_path), **wrong),
        )
    assert "secret" not in str(refused.value)


def test_an_address_is_refused_by_a_backend_of_files_and_within_the_index(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    gallery = read_gallery(tmp_path / "gallery")
    with pytest.raises(SearchIndexError, match="takes no uri and no collection"):
        build_index(gallery, tmp_path / "index", options=options(tmp_path))
    with pytest.raises(SearchIndexError, match="put it beside that folder"):
        build_index(gallery, tmp_path / "index", backend="milvus", options=options(tmp_path / "index"))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def started(port: int, data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Milvus in a process of its own."""
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(data), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < end, "the server did not start"
                time.sleep(0.1)
        yield process
        process.terminate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Milvus in a process of its own."""
    port = free_port()
    with started(port, tmp_path_factory.mktemp("server")):
        yield f"http://127.0.0.1:{port}"


def test_a_server_at_an_address_answers_as_the_file_does(small, server: str, tmp_path: Path) -> None:
    there = BuildOptions(uri=server, collection="catalogue")
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "there", backend="milvus", options=there)
    queries = unit_rows(1, 5, 8)
    same_answers(small.index.search(queries, 5), open_index(tmp_path / "there").index.search(queries, 5))


def test_a_token_is_sent_only_to_an_address_that_the_user_names(
    small, server: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CIRRUS_MILVUS_TOKEN", "root:secret")
    monkeypatch.setenv("CIRRUS_MILVUS_URI", "")  # so does a compose file name none
    there = BuildOptions(uri=server, collection="guarded")
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "there", backend="milvus", options=there)
    with pytest.raises(SearchIndexError, match="only sent to an address that you name") as refused:
        open_index(tmp_path / "there")
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("CIRRUS_MILVUS_URI", server)
    assert len(open_index(tmp_path / "there").index) == 40
    assert b"secret" not in b"".join(path.read_bytes() for path in (tmp_path / "there").iterdir() if path.is_file())


def test_a_token_that_is_set_later_is_used(monkeypatch) -> None:
    """A notebook's user sees the refusal, sets the token, and asks again."""
    tokens: list[str] = []
    client = SimpleNamespace(MilvusClient=lambda token, **others: tokens.append(token))
    monkeypatch.setattr(connection, "need", lambda package, purpose: client)
    for token in ("", "root:secret"):
        monkeypatch.setenv("CIRRUS_MILVUS_TOKEN", token)
        connected("http://later:19530", named=True)
    assert tokens == ["", "root:secret"]


def test_opening_an_index_makes_no_files_where_it_says(small, tmp_path: Path) -> None:
    place = tmp_path / "milvus" / "milvus.json"
    for changed, message in (
        ({"uri": "../elsewhere/milvus.db"}, "its Milvus is not at"),
        ({"uri": "file:///etc"}, "no address of Milvus"),
        ({"fields": [{"name": "price", "field": "pk >= 0 or c0", "type": "number"}]}, "fields.0.field"),
    ):
        original = place.read_bytes()
        rewrite_record(place, **changed)
        (tmp_path / "changed.json").write_bytes(place.read_bytes())
        place.write_bytes(original)
        replace_in_index(tmp_path / "milvus", "milvus.json", tmp_path / "changed.json")
        with pytest.raises(SearchIndexError, match=message):
            open_index(tmp_path / "milvus")
        place.write_bytes(original)
    assert not (tmp_path / "elsewhere").exists()


def test_a_server_that_was_killed_is_named_and_found_again(tmp_path: Path) -> None:
    port = free_port()
    there = BuildOptions(uri=f"http://127.0.0.1:{port}", collection="catalogue")
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    queries = unit_rows(1, 5, 8)
    with started(port, tmp_path / "data") as process:
        build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index", backend="milvus", options=there)
        index = open_index(tmp_path / "index").index
        before = index.search(queries, 5)
        process.kill()
        process.wait()
        with pytest.raises(ServerUnavailable, match=f"no Milvus answers at http://127.0.0.1:{port}"):
            index.search(queries, 5)
    with started(port, tmp_path / "data"):
        end = time.monotonic() + 60
        while True:
            try:
                same_answers(before, index.search(queries, 5))
                break
            except ServerUnavailable:
                assert time.monotonic() < end
                time.sleep(0.2)


def test_a_server_that_is_away_is_named(small, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CIRRUS_MILVUS_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ServerUnavailable, match=r"http://127\.0\.0\.1:\d+") as away:
        open_index(tmp_path / "milvus")
    assert away.value.url is not None


_OTHER_PROCESS = """
import sys
from cirrus_client.errors import CirrusError
from cirrus_client.index import open_index
try:
    print(len(open_index(sys.argv[1]).index))
except CirrusError as error:
    print(type(error).__name__, error)
"""


def in_another_process(index: Path) -> str:
    command = [sys.executable, "-c", _OTHER_PROCESS, str(index)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_file_belongs_to_one_process_and_is_found_again_by_the_next(small, tmp_path: Path) -> None:
    """It is found also if its folder has moved along with the index."""
    refused = in_another_process(tmp_path / "milvus")
    assert refused.startswith("SearchIndexError")
    assert "another process" in refused
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tests.client.test_milvus import built, unit_rows\n"
        "built(Path(sys.argv[1]), unit_rows(6, 40, 8))\n"
    )
    (tmp_path / "first").mkdir()
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "first"), root], check=True, timeout=120)
    (tmp_path / "first").rename(tmp_path / "moved")
    assert in_another_process(tmp_path / "moved" / "milvus").strip() == "40"


def test_columns_that_do_not_fit_are_refused_before_anything_is_replaced(small, tmp_path: Path) -> None:
    gallery = read_gallery(tmp_path / "gallery")
    for values, message in (
        (pa.array([2**64 - 1] * 40, pa.uint64()), "not integers of 64 bits"),
        (pa.array(["x" * 70_000] * 40), "70,000 bytes"),
    ):
        metadata = pa.table({"image_path": named(40), "large": values})
        with pytest.raises(SearchIndexError, match=message):
            build_index(gallery, tmp_path / "milvus", backend="milvus", options=options(tmp_path), metadata=metadata)
    assert len(open_index(tmp_path / "milvus").index) == 40
    client = connected(str(tmp_path / "milvus.db"), named=True)
    assert len(client.list_collections()) == 1, "a build that fails leaves no collection"


def test_integers_dates_and_times_are_exact(tmp_path: Path) -> None:
    whole = [2**53, 2**53 + 1, 2**63 - 1, -(2**63), 0]
    metadata = pa.table(
        {
            "image_path": named(5),
            "whole": pa.array(whole, pa.int64()),
            "day": pa.array([date(1, 1, 1), date(9999, 12, 31), date(1970, 1, 1), None, date(1969, 12, 31)]),
            "local": pa.array([datetime(2026, 5, 31, 12, 0, 0, n) for n in range(5)], pa.timestamp("us")),
            "zoned": pa.array([datetime(2026, 5, 31, 12, tzinfo=UTC)] * 5, pa.timestamp("s", "Europe/Berlin")),
            "fine": pa.array([1_000_000_000_000_000_000 + 1_000 * n for n in range(5)], pa.timestamp("ns")),
        }
    )
    faiss, milvus = built(tmp_path, unit_rows(0, 5, 16), metadata)
    kept, found = faiss.items.rows(range(5)), milvus.items.rows(range(5))
    assert [item.metadata for item in found] == [item.metadata for item in kept]
    for op, value in itertools.product(("==", "<", "<=", ">", "!="), whole):
        wanted = filter_of({"column": "whole", "op": op, "value": value})
        assert selected(milvus, wanted) == set(np.flatnonzero(faiss.items.select(wanted)).tolist())
    for column, value in (
        ("day", "1970-01-01"),
        ("local", "2026-05-31T12:00:00.000002"),
        ("zoned", "2026-05-31T12:00"),
    ):
        for op in ("==", "<", ">=", "!="):
            wanted = filter_of({"not": {"column": column, "op": op, "value": value}})
            assert selected(milvus, wanted) == set(np.flatnonzero(faiss.items.select(wanted)).tolist())


def test_what_was_written_is_in_segments_which_are_searched_fast(small: SavedIndex, tmp_path: Path) -> None:
    """What the embedded Milvus has in memory alone, it compares in Python: a hundred times slower."""

    def in_segments() -> int:
        files = (tmp_path / "milvus.db").rglob("*.parquet")
        return sum(pq.read_metadata(path).num_rows for path in files if VECTOR in pq.read_schema(path).names)

    assert in_segments() == 40
    small.index.upsert(new_items(["new.jpg", "newer.jpg"]), unit_rows(7, 2, 8))
    assert in_segments() == 42


def test_a_collection_filled_in_many_messages_is_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(collections, "_BATCH_BYTES", 4_000)
    faiss, milvus = built(tmp_path, unit_rows(0, 300, 16))
    queries = unit_rows(1, 20, 16)
    same_answers(faiss.index.search(queries, 10), milvus.index.search(queries, 10))
    np.testing.assert_array_equal(milvus.index.vectors(np.arange(300)), faiss.index.vectors(np.arange(300)))


@pytest.mark.parametrize("vectors", [1, 3])
def test_images_of_equal_bytes_are_in_one_place_however_many_are_asked_for(tmp_path: Path, vectors: int) -> None:
    of_kind = unit_rows(1, 5 * vectors, 16).reshape(5, *space(16, vectors).item_shape)
    faiss, milvus = built(tmp_path, of_kind[np.random.default_rng(3).integers(0, 5, 60)])
    queries = unit_rows(2, 10, 16)
    whole = milvus.index.search(queries, 60)
    np.testing.assert_allclose(whole.scores, faiss.index.search(queries, 60).scores, atol=1e-5)
    for k in (1, 7, 30):
        np.testing.assert_array_equal(milvus.index.search(queries, k).rows, whole.rows[:, :k])


def test_builds_that_fail_take_nothing_from_the_index_that_is_served(small: SavedIndex, tmp_path: Path) -> None:
    """They may fail as late as when the folder is replaced, again and again; the next that succeeds removes theirs."""
    gallery, queries = read_gallery(tmp_path / "gallery"), unit_rows(1, 5, 8)
    before = small.index.search(queries, 5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(saving, "shards_of", fails)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                build_index(gallery, tmp_path / "milvus", backend="milvus", options=options(tmp_path))
    same_answers(before, open_index(tmp_path / "milvus").index.search(queries, 5))
    build_index(gallery, tmp_path / "milvus", backend="milvus", options=options(tmp_path))
    same_answers(before, small.index.search(queries, 5))
    same_answers(before, open_index(tmp_path / "milvus").index.search(queries, 5))
    assert len(connected(str(tmp_path / "milvus.db"), named=True).list_collections()) == 2


def fails(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_number_that_a_server_does_not_take_is_refused_with_its_column(small, server: str, tmp_path: Path) -> None:
    metadata = pa.table({"image_path": named(40), "price": [float("nan"), *range(39)]})
    there = BuildOptions(uri=server, collection="finite")
    with pytest.raises(SearchIndexError, match="column 'price' has numbers that are infinite or NaN"):
        build_index(
            read_gallery(tmp_path / "gallery"), tmp_path / "there", backend="milvus", options=there, metadata=metadata
        )
