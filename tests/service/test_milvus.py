"""The service answers from a collection of Milvus what it answers from an index of FAISS, and serves what changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

pytest.importorskip("milvus_lite", reason="Milvus is not installed (pip install 'cirrus-cir[milvus-lite]')")

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import ServerUnavailable
from cirrus_client.gallery import read_gallery
from cirrus_client.index import BuildOptions, build_index, open_index, read_metadata
from cirrus_client.index.milvus.collection import Collection
from tests.service.conftest import Serve
from tests.service.test_search import ids, problem, search

DRESS = {"id": "000004.jpg", "text": "red"}


@pytest.fixture(scope="module")
def milvus_root(gallery_root: Path, products: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("milvus")
    options = BuildOptions(uri=str(folder / "milvus.db"), collection="pictures")
    metadata = read_metadata(products)
    build_index(read_gallery(gallery_root), folder / "index", backend="milvus", options=options, metadata=metadata)
    return folder / "index"


@pytest.fixture(scope="module")
def milvus(serve: Serve, milvus_root: Path) -> TestClient:
    return serve(index=milvus_root)


def same_results(one: dict[str, Any], other: dict[str, Any]) -> None:
    for results in (one["results"], other["results"]):
        for item in (item for result in results for item in result["items"]):
            item["score"] = pytest.approx(item["score"], abs=1e-5)
    assert one["results"] == other["results"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 59},
        {"k": 5, "offset": 7},
        {
            "filter": {
                "and": [{"column": "sold", "op": "==", "value": True}, {"column": "stock", "op": ">", "value": 3}]
            }
        },
        {"filter": {"not": {"column": "price", "op": "<", "value": 40}}, "k": 59},
        {"filter": {"column": "since", "op": ">=", "value": "2026-06-01"}, "k": 59},
        {"filter": {"column": "tags", "op": "null"}},
        {"unique": "product", "k": 59},
        {"unique": "brand"},
        {"unique": "brand", "k": 59},
        {"unique": "price", "k": 59},
        {"unique": "sold", "k": 20, "fold": 0.95},
        {"unique": "since", "k": 30, "offset": 3, "min_score": 0.1},
        {"unique": "brand", "filter": {"column": "sold", "op": "==", "value": False}},
        {"fold": 0.9, "k": 59},
        {"min_score": 0.2, "k": 59},
        {"include_reference": True},
    ],
)
@pytest.mark.slow
def test_a_search_is_answered_as_from_faiss(client, milvus, options: dict[str, Any]) -> None:
    queries = [DRESS, {"id": "000011.jpg"}]
    same_results(search(client, *queries, **options), search(milvus, *queries, **options))


def test_a_file_is_left_out_of_its_own_answer(client, milvus, photo) -> None:
    answers = [one.post("/v1/search", files={"image": photo}, data={"k": "20"}).json() for one in (client, milvus)]
    same_results(*answers)
    assert "000007.jpg" not in ids(answers[1]["results"][0])


def test_items_images_columns_and_rows_are_answered_as_from_faiss(client, milvus) -> None:
    for path in ("/v1/items/000012.jpg", "/v1/items/unknown.jpg"):
        answers = [one.get(path) for one in (client, milvus)]
        assert answers[0].status_code == answers[1].status_code
        if answers[0].status_code == 200:
            assert answers[0].json() == answers[1].json()
    assert (
        milvus.get("/v1/items/000012.jpg/image?size=64").content
        == client.get("/v1/items/000012.jpg/image?size=64").content
    )
    described = [one.get("/v1/collections").json()["collections"][0] for one in (client, milvus)]
    for name in ("columns", "images", "accepts", "space"):
        assert described[0][name] == described[1][name]
    rows = {"ids": [3, 0, 59]}
    assert milvus.post("/metadata", json=rows).json() == client.post("/metadata", json=rows).json()
    assert milvus.post("/metadata", json={"ids": [60]}).status_code == 404
    assert "cirrus_" in milvus.get("/metrics").text


def test_a_server_that_is_away_hides_no_other_collection(milvus, monkeypatch) -> None:
    def away(*_: object) -> None:
        raise ServerUnavailable("Milvus at http://inner.example:19530 does not answer")

    monkeypatch.setattr(Collection, "query", away)
    pictures, texts = milvus.get("/v1/collections").json()["collections"]
    assert (pictures["images"], pictures["versions"][0]["images"]) == (None, None)
    assert "can't be asked" in pictures["problem"]
    assert pictures["columns"]
    assert (texts["images"] > 0, texts["problem"]) == (True, None)
    assert re.search(r'cirrus_index_images\{collection="pictures",.*\} NaN', milvus.get("/metrics").text)
    assert milvus.get("/readyz").status_code == 503


@pytest.mark.parametrize(
    "body", [{"filter": {"column": "colour", "op": "null"}}, {"unique": "nothing"}, {"unique": "tags"}]
)
def test_what_does_not_fit_is_refused_with_its_place(client, milvus, body: dict[str, Any]) -> None:
    answers = [problem(one.post("/v1/search", json={"queries": [DRESS], **body})) for one in (client, milvus)]
    assert (answers[1]["type"], answers[1]["place"]) == (answers[0]["type"], answers[0]["place"])


def test_what_is_upserted_is_answered_and_what_is_deleted_is_not(
    serve: Serve, gallery_root: Path, products: Path, encoder: LocalEncoder, pictures: Path, tmp_path: Path
) -> None:
    options = BuildOptions(uri=str(tmp_path / "milvus.db"), collection="changing")
    gallery = read_gallery(gallery_root)
    build_index(gallery, tmp_path / "index", backend="milvus", options=options, metadata=read_metadata(products))
    changing, index = serve(index=tmp_path / "index"), open_index(tmp_path / "index").index
    best = ids(search(changing, DRESS, k=3)["results"][0])
    assert index.delete(best[:2]) == 2
    assert ids(search(changing, DRESS, k=1)["results"][0]) == best[2:]
    embedding = encoder.encode_queries([pictures / "000004.jpg"], ["red"])
    index.upsert(pa.table({"image_path": [best[1]], "price": [1.0], "brand": ["new"]}), np.asarray(embedding))
    (found,) = search(changing, DRESS, k=1, filter={"column": "brand", "op": "==", "value": "new"})["results"][0][
        "items"
    ]
    assert (found["id"], found["metadata"]["price"], found["score"]) == (best[1], 1.0, pytest.approx(1.0, abs=1e-5))
    assert changing.get(f"/v1/items/{best[0]}").status_code == 404
    assert changing.get("/v1/collections").json()["collections"][0]["images"] == 59
