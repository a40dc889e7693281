"""Filters: what they are true for, against plain Python; searches under them, against brute force."""

from __future__ import annotations

import asyncio
import json
import math
import operator
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.errors import InvalidFilter, SearchIndexError
from cirrus_client.index.distinct import search_distinct
from cirrus_client.index.faiss_build import index_in_memory
from cirrus_client.index.filter_models import Filter
from cirrus_client.index.filters import matching
from cirrus_client.index.parquet_items import ParquetItems
from cirrus_client.index.protocol import BuildOptions, SearchKind, Storage
from cirrus_client.service import searcher
from cirrus_client.service.ranking import Ranked, Rules, select
from cirrus_client.service.routes import clip_retrieval
from cirrus_client.service.searcher import Searcher
from tests.service.test_search import ids, problem, search

_FILTER: TypeAdapter[Any] = TypeAdapter(Filter)
_PYTHON = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LARGE = 2**53
ROWS = 300


def columns(seed: int) -> dict[str, list[Any]]:
    """Columns of every type with empty places, and values at the edges."""
    chance = random.Random(seed)

    def some(values: list[Any]) -> list[Any]:
        return [None if chance.random() < 0.1 else chance.choice(values) for _ in range(ROWS)]

    return {
        "price": some([0.0, -0.0, 0.1, 19.99, 20.0, -3.5, 1e300, math.inf, math.nan]),
        "narrow": some([0.1, 0.5, 2.0, -1.25]),
        "stock": some([0, 1, 2, -5, _LARGE, _LARGE + 1, 2**63 - 1, -(2**63)]),
        "small": some([0, 1, 200, 255]),
        "brand": some(["", "a", "b", "B", "é", "a'; drop table", "日本"]),
        "sold": some([True, False]),
        "since": some([date(2026, 1, 1), date(1969, 12, 31), date(2026, 5, 31)]),
        "seen": some([datetime(2026, 5, 31, 12, tzinfo=UTC) + timedelta(microseconds=n) for n in range(3)]),
        "local": some([datetime(2026, 5, 31, 12) + timedelta(hours=n) for n in range(3)]),
        "day": some([date(2026, 1, 1), date(2026, 5, 31)]),
        "shade": some(["light", "dark", ""]),
    }


TYPES = {
    "price": pa.float64(),
    "narrow": pa.float32(),
    "stock": pa.int64(),
    "small": pa.uint8(),
    "brand": pa.string(),
    "sold": pa.bool_(),
    "since": pa.date32(),
    "seen": pa.timestamp("us", "UTC"),
    "local": pa.timestamp("us"),
    "day": pa.date64(),
    "shade": pa.dictionary(pa.int32(), pa.string()),
}


def random_filter(chance: random.Random, held: dict[str, list[Any]], depth: int = 3) -> dict[str, Any]:
    kind = chance.choice(
        ["and", "or", "not", "compare", "compare", "in", "null"] if depth else ["compare", "in", "null"]
    )
    if kind in ("and", "or"):
        return {kind: [random_filter(chance, held, depth - 1) for _ in range(chance.randrange(4))]}
    if kind == "not":
        return {"not": random_filter(chance, held, depth - 1)}
    column = chance.choice(list(held))
    if kind == "null":
        return {"column": column, "op": chance.choice(["null", "not_null"])}
    if kind == "in":
        return {"column": column, "op": "in", "value": [random_value(chance, held, column) for _ in range(3)]}
    ops = ["==", "!="] if column == "sold" else list(_PYTHON)
    return {"column": column, "op": chance.choice(ops), "value": random_value(chance, held, column)}


def random_value(chance: random.Random, held: dict[str, list[Any]], column: str) -> Any:
    if column in ("stock", "small") and chance.random() < 0.4:
        return chance.choice([0.5, -0.5, 1.0, 300, -1, _LARGE + 2, 2**63 - 1, 1e30, -1e30])
    values = [v for v in held[column] if v is not None and v == v and v not in (math.inf,)]
    value = chance.choice(values)
    if isinstance(value, datetime) and chance.random() < 0.5:  # a time without a zone is one of UTC
        elsewhere = timezone(timedelta(hours=2))
        value = value.replace(tzinfo=None) if value.tzinfo else value.replace(tzinfo=UTC).astimezone(elsewhere)
    return value.isoformat() if isinstance(value, date) else value


def is_true(row: dict[str, Any], node: dict[str, Any]) -> bool:
    """The meaning of a filter in plain Python."""
    if "and" in node:
        return all(is_true(row, inner) for inner in node["and"])
    if "or" in node:
        return any(is_true(row, inner) for inner in node["or"])
    if "not" in node:
        return not is_true(row, node["not"])
    held = row[node["column"]]
    if node["op"] in ("null", "not_null"):
        return (held is None) == (node["op"] == "null")
    if held is None:
        return False
    if node["op"] == "in":
        return any(held == typed(value, held) for value in node["value"])
    return _PYTHON[node["op"]](held, typed(node["value"], held))


def typed(value: Any, held: Any) -> Any:
    if not isinstance(held, date):
        return value
    moment = type(held).fromisoformat(value)
    if not isinstance(moment, datetime):
        return moment
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment if held.tzinfo else moment.astimezone(UTC).replace(tzinfo=None)


@pytest.fixture
def in_japan(monkeypatch) -> Iterator[None]:
    """A machine whose zone is not UTC."""
    with monkeypatch.context() as machine:
        machine.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("seed", range(5))
def test_500_random_trees_are_true_for_what_python_says(seed: int, in_japan) -> None:
    held = columns(seed)
    table = pa.table({name: pa.array(values, TYPES[name]) for name, values in held.items()})
    held["narrow"] = table["narrow"].to_pylist()
    rows = [dict(zip(held, values, strict=True)) for values in zip(*held.values(), strict=True)]
    chance = random.Random(100 + seed)
    sizes = set()
    for _ in range(100):
        tree = random_filter(chance, held)
        expected = [is_true(row, tree) for row in rows]
        assert matching(table, _FILTER.validate_python(tree)).tolist() == expected, tree
        sizes.add(sum(expected))
    assert len(sizes) > 20, "the trees hardly differ"


@pytest.mark.parametrize("op", _PYTHON)
@pytest.mark.parametrize("type_", [pa.int64(), pa.uint64()])
def test_an_integer_of_64_bits_is_never_taken_for_its_neighbour(type_: pa.DataType, op: str) -> None:
    least, most = (0, 2**64 - 1) if type_ == pa.uint64() else (-(2**63), 2**63 - 1)
    held = [least, least + 1, most - 1, most]
    table = pa.table({"serial": pa.array(held, type_)})
    for value in (least - 1, *held, most + 1):
        node = _FILTER.validate_json(json.dumps({"column": "serial", "op": op, "value": value}))
        assert matching(table, node).tolist() == [_PYTHON[op](one, value) for one in held], value


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ({"column": "colour", "op": "==", "value": "a"}, "filter.column"),
        ({"column": "price", "op": "==", "value": "20"}, "filter.value"),
        ({"column": "price", "op": "<", "value": True}, "filter.value"),
        ({"column": "brand", "op": "<", "value": 5}, "filter.value"),
        ({"column": "sold", "op": "<", "value": True}, "filter.value"),
        ({"column": "sold", "op": "==", "value": 1}, "filter.value"),
        ({"column": "since", "op": "<", "value": "May"}, "filter.value"),
        ({"and": [{"or": []}, {"not": {"column": "x", "op": "null"}}]}, "filter.and.1.not.column"),
        ({"column": "brand", "op": "in", "value": ["a", 1]}, "filter.value"),
    ],
)
def test_a_filter_that_does_not_fit_the_columns_is_refused_with_its_place(node: dict[str, Any], place: str) -> None:
    table = pa.table({name: pa.array([], type_) for name, type_ in TYPES.items()})
    with pytest.raises(InvalidFilter) as refused:
        matching(table, _FILTER.validate_python(node))
    assert refused.value.place == place


@pytest.mark.parametrize(
    "node",
    [
        None,
        {},
        [],
        "price < 5",
        {"column": "price"},
        {"column": "price", "op": "like", "value": "a"},
        {"column": "price", "op": "==", "value": None},
        {"column": "price", "op": "==", "value": {"a": 1}},
        {"and": {}, "or": []},
        {"and": [], "or": []},
        {"column": "price", "op": "==", "value": math.nan},
        {"not": None},
    ],
)
def test_what_is_no_filter_is_refused_by_its_form(node: Any) -> None:
    with pytest.raises(ValidationError):
        _FILTER.validate_python(node)


def test_what_recent_filters_select_is_kept_and_the_oldest_is_not() -> None:
    recent, made = searcher._Recent(), []
    for key in (*range(16), 0, 16, 0, 1):
        recent.get(key, lambda key=key: made.append(key))
    assert made == [*range(16), 16, 1]


def test_a_deep_or_large_filter_is_refused_in_no_time(client) -> None:
    query = {"queries": [{"id": "000001.jpg"}]}
    deep: dict[str, Any] = {"column": "price", "op": "null"}
    for _ in range(90):
        deep = {"not": {"and": [deep]}}
    large = {"or": [{"and": [{"column": "price", "op": "null"}] * 50}] * 50}
    assert client.post("/v1/search", json={**query, "filter": deep}).status_code in (200, 422)
    assert problem(client.post("/v1/search", json={**query, "filter": large}))["type"] == "urn:cirrus:InvalidFilter"


def embeddings(count: int, vectors: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    drawn = generator.normal(size=(count, vectors, 24)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
    return drawn[:, 0] if vectors == 1 else drawn


@pytest.mark.slow
@pytest.mark.parametrize("vectors", [1, 8])
@pytest.mark.parametrize("kind", SearchKind)
@pytest.mark.parametrize("storage", Storage)
def test_a_search_among_some_rows_is_that_of_brute_force(vectors, kind, storage) -> None:
    similarity = Similarity.COSINE if vectors == 1 else Similarity.MAX_COSINE
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=vectors, similarity=similarity)
    stored = embeddings(2_000, vectors, seed=1)
    index, _ = index_in_memory(space, stored, options=BuildOptions(kind, storage))
    held = index.vectors(np.arange(len(stored)))
    assert np.abs(held.reshape(stored.shape) - stored).max() < 1e-3
    queries = embeddings(20, 1, seed=2)
    for share in (0.01, 0.3, 1.0):
        among = np.random.default_rng(3).random(len(stored)) < share
        k = min(10, int(among.sum()))
        hits = index.search_among(queries, 10, among)
        scores = np.einsum("nvd,bd->bnv", held, queries).max(axis=2)
        scores[:, ~among] = -np.inf
        assert hits.rows.shape == (20, k)
        assert among[hits.rows].all()
        assert np.allclose(hits.scores, -np.sort(-scores, axis=1)[:, :k], atol=1e-5)


def test_a_search_among_nothing_finds_nothing_and_a_wrong_mask_is_refused() -> None:
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=1, similarity=Similarity.COSINE)
    index, _ = index_in_memory(space, embeddings(50, 1, seed=1))
    queries = embeddings(2, 1, seed=2)
    assert index.search_among(queries, 5, np.zeros(50, dtype=bool)).rows.shape == (2, 0)
    for wrong in (np.zeros(49, dtype=bool), np.zeros(50, dtype=np.int64)):
        with pytest.raises(SearchIndexError, match="among"):
            index.search_among(queries, 5, wrong)


def test_a_filtered_answer_is_the_whole_answer_without_the_others(client) -> None:
    query = {"id": "000004.jpg", "text": "red"}
    wanted = {
        "and": [{"column": "sold", "op": "==", "value": True}, {"column": "brand", "op": "in", "value": ["a", "b"]}]
    }
    whole = search(client, query, k=59)["results"][0]["items"]
    kept = [item["id"] for item in whole if item["metadata"]["sold"] and item["metadata"]["brand"] in ("a", "b")]
    found = search(client, query, k=59, filter=wanted)["results"][0]
    assert ids(found) == kept
    assert not found["more"]
    assert ids(search(client, query, k=3, offset=2, filter=wanted)["results"][0]) == kept[2:5]
    others = search(client, query, k=59, filter={"not": wanted})["results"][0]
    assert ids(search(client, query, k=59, filter={"not": {"not": wanted}})["results"][0]) == kept
    assert sorted([*kept, *ids(others)]) == sorted(item["id"] for item in whole)
    nothing = {"column": "price", "op": ">", "value": 10_000}
    assert search(client, query, filter=nothing)["results"][0] == {"items": [], "more": False}


def test_the_best_item_per_product_and_those_without_one_are_answered(client) -> None:
    query = {"id": "000004.jpg"}
    whole = search(client, query, k=59)["results"][0]["items"]
    for column in ("product", "brand"):
        seen: set[Any] = set()
        kept = []
        for item in whole:
            value = item["metadata"][column]
            if value is None or value not in seen:
                kept.append(item["id"])
            seen.add(value)
        assert ids(search(client, query, k=59, unique=column)["results"][0]) == kept
        assert ids(search(client, query, k=2, offset=1, unique=column)["results"][0]) == kept[1:3]
    for column in ("nothing", "tags"):
        body = {"queries": [query], "unique": column}
        assert problem(client.post("/v1/search", json=body))["place"] == "unique"


@pytest.mark.parametrize("values", [1, 3, 400])
def test_one_item_per_value_is_found_without_reading_the_whole_index(values: int, monkeypatch) -> None:
    """The best item is left out, so that the next one of its group is answered in its place."""
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=1, similarity=Similarity.COSINE)
    stored, query = embeddings(5_000, 1, seed=1), embeddings(1, 1, seed=2)[0]
    brands = [None if n % 1_000 == 0 else n % values for n in range(len(stored))]
    table = pa.table({"image_path": [f"{n}.jpg" for n in range(len(stored))], "brand": brands})
    index, _ = index_in_memory(space, stored)
    items = ParquetItems(table, images="/photos")
    asked: list[int] = []

    def counting(search: Callable[..., Any]) -> Callable[..., Any]:
        def counted(queries: Any, k: int, *among: Any) -> Any:
            asked.append(k)
            return search(queries, k, *among)

        return counted

    for name in ("search", "search_among"):
        monkeypatch.setattr(index, name, counting(getattr(index, name)))
    order = np.argsort(-(stored @ query))
    left_out, seen, expected = int(order[0]), set(), []
    for row in order[1:].tolist():
        if brands[row] is None or brands[row] not in seen:
            expected.append(row)
        seen.add(brands[row])

    async def ranked() -> list[int]:
        searcher = Searcher(SimpleNamespace(index=index, items=items))
        groups = await searcher.groups("brand")
        rules = Rules(count=10, left_out=frozenset({left_out}), min_score=-1, groups=groups)
        return [one.row for one in await searcher.rank(query, rules, None)]

    found = asyncio.run(ranked())
    assert found == expected[: len(found)]
    assert len(found) == min(10, len(expected))
    assert values == 400 or sum(asked) < 3_000


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_best_image_of_each_value_is_that_of_brute_force_also_among_equal_images(vectors: int) -> None:
    similarity = Similarity.COSINE if vectors == 1 else Similarity.MAX_COSINE
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=vectors, similarity=similarity)
    chance = np.random.default_rng(3)
    index, _ = index_in_memory(space, embeddings(30, vectors, seed=1)[chance.integers(0, 30, 300)])
    brands = [number or None for number in chance.integers(0, 12, 300).tolist()]
    table = pa.table({"image_path": [f"{n}.jpg" for n in range(300)], "brand": brands})
    saved = SimpleNamespace(index=index, items=ParquetItems(table, images="/photos"))
    groups, queries = saved.items.groups("brand"), embeddings(5, 1, seed=2)

    async def ranked(query: np.ndarray, k: int, among: np.ndarray | None) -> list[int]:
        return [one.row for one in await Searcher(saved).rank(query, Rules(count=k, groups=groups), among)]

    for among in (None, chance.random(300) < 0.5):
        for query, rows in zip(queries, index.search(queries, 300).rows.tolist(), strict=True):
            wanted = [row for row in rows if among is None or among[row]]
            of_brand = {brands[row]: row for row in reversed(wanted)}
            expected = [row for row in wanted if brands[row] is None or of_brand[brands[row]] == row]
            for k in (1, 3, 10, 40):
                found = search_distinct(index, query[None], k, groups, among).rows[0].tolist()
                assert found == asyncio.run(ranked(query, k, among)) == expected[:k]


def test_a_value_whose_best_image_is_left_out_is_answered_by_its_next_one() -> None:
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=1, similarity=Similarity.COSINE)
    stored, query = embeddings(300, 1, seed=1), embeddings(1, 1, seed=2)[0]
    best, second, *_, worst = np.argsort(-(stored @ query)).tolist()
    brands = ["rare" if row in (best, worst) else "common" for row in range(300)]
    items = ParquetItems(pa.table({"image_path": [f"{n}.jpg" for n in range(300)], "brand": brands}), images="/photos")
    saved = SimpleNamespace(index=index_in_memory(space, stored)[0], items=items)
    rules = Rules(count=2, left_out=frozenset({best}), groups=items.groups("brand"))
    assert [one.row for one in asyncio.run(Searcher(saved).rank(query, rules, None))] == [second, worst]


def test_what_an_approximate_index_missed_at_first_is_in_its_place(monkeypatch) -> None:
    """The second search, among the values that were not found yet, is exact: what it found was put behind the rest."""
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=1, similarity=Similarity.COSINE)
    stored, query = embeddings(2_000, 1, seed=1), embeddings(1, 1, seed=2)[0]
    table = pa.table({"image_path": [f"{n}.jpg" for n in range(2_000)], "brand": [n // 100 for n in range(2_000)]})
    index, _ = index_in_memory(space, stored)
    items = ParquetItems(table, images="/photos")
    promising = np.arange(2_000) // 100 % 2 == 0
    monkeypatch.setattr(index, "search", lambda queries, k: index.search_among(queries, k, promising))

    async def ranked() -> list[float]:
        searcher = Searcher(SimpleNamespace(index=index, items=items))
        rules = Rules(count=20, groups=await searcher.groups("brand"))
        return [one.score for one in await searcher.rank(query, rules, None)]

    best = sorted((float((stored[start : start + 100] @ query).max()) for start in range(0, 2_000, 100)), reverse=True)
    assert asyncio.run(ranked()) == pytest.approx(best)
    assert search_distinct(index, query[None], 20, items.groups("brand")).scores[0] == pytest.approx(best)


def test_searches_of_one_moment_find_as_many_as_each_wants_and_fail_alone(monkeypatch) -> None:
    """A server that has the index may refuse one filter; all searches of the same moment got its error."""
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=1, similarity=Similarity.COSINE)
    stored, query = embeddings(50, 1, seed=1), embeddings(1, 1, seed=2)[0]
    index, _ = index_in_memory(space, stored)

    def refuse(*_: object) -> None:
        raise SearchIndexError("refused")

    monkeypatch.setattr(index, "search_among", refuse)

    async def both() -> list[object]:
        searcher = Searcher(SimpleNamespace(index=index, items=None))
        wanted = ((2, None), (3, None), (3, np.ones(50, dtype=np.bool_)), (3, None))
        asked = [searcher.rank(query, Rules(count=count), among) for count, among in wanted]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(both())
    assert isinstance(found[2], SearchIndexError)
    assert [len(one) for place, one in enumerate(found) if place != 2] == [2, 3, 3]


def test_pages_of_an_index_that_is_not_exact_agree_whoever_searches_at_the_same_time() -> None:
    """More candidates are compared where more is asked for: what another query wanted changed an answer."""
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=1, similarity=Similarity.COSINE)
    index, _ = index_in_memory(space, embeddings(3_000, 1, seed=1), options=BuildOptions(SearchKind.RABITQ))
    index._host.k_factor = 1
    queries, ends = embeddings(40, 1, seed=2), (34, 44, 54, 64)

    async def pages(searcher: Searcher, *, together: bool) -> list[list[list[int]]]:
        asked = [searcher.rank(query, Rules(count=end), None) for query in queries for end in ends]
        found = await asyncio.gather(*asked) if together else [await one for one in asked]
        rows = iter([[one.row for one in ranked] for ranked in found])
        return [[next(rows) for _ in ends] for _ in queries]

    searcher = Searcher(SimpleNamespace(index=index, items=None))
    alone, beside = asyncio.run(pages(searcher, together=False)), asyncio.run(pages(searcher, together=True))
    assert alone == beside
    assert all(page == of_query[-1][: len(page)] for of_query in alone for page in of_query)


def test_near_duplicates_are_folded_into_the_better_one(client, index_root, monkeypatch) -> None:
    from cirrus_client.index import open_index

    query = {"id": "000004.jpg"}
    whole = ids(search(client, query, k=59)["results"][0])
    saved = open_index(index_root)
    held = saved.index.vectors(np.array([saved.items.find(id) for id in whole]))[:, 0]
    cosines = held @ held.T
    limit = float(np.quantile(cosines, 0.8))
    found = search(client, query, k=59, fold=limit)["results"][0]["items"]
    kept: dict[int, list[str]] = {}
    for place, id in enumerate(whole):
        nearest = max(kept, key=lambda other: cosines[place, other], default=None)
        if nearest is not None and cosines[place, nearest] >= limit:
            kept[nearest].append(id)
        else:
            kept[place] = []
    assert 1 < len(kept) < 59
    assert {item["id"]: item["duplicates"] for item in found} == {whole[place]: ids for place, ids in kept.items()}
    monkeypatch.setattr(clip_retrieval, "_DUPLICATE", limit)
    body = {"embedding_input": held[0].tolist(), "num_images": 60, "deduplicate": True}
    unlike = saved.index.vectors(np.array([one["id"] for one in client.post("/knn-service", json=body).json()]))[:, 0]
    assert 1 < len(unlike) < 60
    assert np.triu(unlike @ unlike.T, 1).max() < limit


def test_images_that_are_all_alike_are_folded_without_reading_the_whole_index(monkeypatch) -> None:
    """Of CLIP's embeddings many are: a fold of 0.9 read a million of them, one after the other."""
    space = SpaceSpec.of({"weights": "none"}, dim=24, vectors=1, similarity=Similarity.COSINE)
    stored, query = embeddings(2, 1, seed=1)[[0] * 4_000 + [1]], embeddings(1, 1, seed=1)[0]
    index, _ = index_in_memory(space, stored)
    asked: list[int] = []
    search = index.search
    monkeypatch.setattr(index, "search", lambda queries, k: (asked.append(k), search(queries, k))[1])
    monkeypatch.setattr(searcher, "_MOST_VECTORS", 1_000)

    async def ranked() -> list[Ranked]:
        return await Searcher(SimpleNamespace(index=index, items=None)).rank(query, Rules(count=10, fold=0.9), None)

    (only,) = asyncio.run(ranked())
    assert (only.row, only.duplicates) == (0, list(range(1, 1_000)))
    assert asked == [64, 256, 1_000]


@pytest.mark.parametrize("vectors", [1, 3])
def test_duplicates_are_those_of_the_nearest_better_one(vectors: int) -> None:
    held = embeddings(300, vectors, seed=1).reshape(300, vectors, 24)
    scores = np.linspace(1, 0, 300, dtype=np.float32)
    expected: dict[int, list[int]] = {}
    for row in range(300):
        to = {other: float((held[row] @ held[other].T).max(axis=1).mean()) for other in expected}
        nearest = max(to, key=to.__getitem__, default=None)
        if nearest is not None and to[nearest] >= 0.3:
            expected[nearest].append(row)
        elif len(expected) == 40:
            break
        else:
            expected[row] = []
    found = select(np.arange(300), scores, Rules(count=40, fold=0.3), lambda rows: held[rows])
    assert {one.row: one.duplicates for one in found} == expected
    half = np.array([[[1, 0]], [[0.5, 0.75**0.5]]], dtype=np.float32)
    assert select(np.arange(2), scores[:2], Rules(count=2, fold=0.5), lambda rows: half) == [Ranked(0, 1, [1])]
    assert any(expected.values())


def test_scores_below_the_threshold_are_left_out(client) -> None:
    query = {"id": "000004.jpg"}
    whole = search(client, query, k=59)["results"][0]["items"]
    limit = whole[10]["score"]
    found = search(client, query, k=59, min_score=limit)["results"][0]
    assert found["items"] == whole[:11]
    assert not found["more"]


def test_metadata_are_joined_by_any_column_of_paths(products, tmp_path) -> None:
    import pyarrow.parquet as pq

    from cirrus_client.index import read_metadata

    table = pq.read_table(products).rename_columns(
        ["photo", "price", "stock", "brand", "sold", "since", "product", "image_path"]
    )
    pq.write_table(table, tmp_path / "photos.parquet")
    read = read_metadata(tmp_path / "photos.parquet", key="photo")
    assert read["image_path"].to_pylist() == table["photo"].to_pylist()
    assert read.column_names == ["image_path", "price", "stock", "brand", "sold", "since", "product"]
    for key, message in (("picture", "no column 'picture'"), ("stock", "'stock' is int64")):
        with pytest.raises(SearchIndexError, match=message):
            read_metadata(tmp_path / "photos.parquet", key=key)
