"""Searches over HTTP whose best are ordered anew by the bundle's reranker."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.service.collection import Source
from cirrus_client.service.limits import MAX_RERANK
from tests.service.in_process import in_process
from tests.service.test_search import ids, problem, search
from tests.tiny import write_tiny_reranking_bundle

ASKED = {"id": "000007.jpg", "text": "in blue"}


@pytest.fixture(scope="module")
def reranking(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_reranking_bundle(tmp_path_factory.mktemp("bundles") / "reranking")


@pytest.fixture
def photos(pictures: Path, tmp_path: Path) -> Path:
    """A copy of the pictures, which a test may damage."""
    return Path(shutil.copytree(pictures, tmp_path / "photos"))


@pytest.fixture
def served(reranking: Bundle, text_source: Source, photos: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A service with a collection whose bundle has a reranker, and one whose bundle has none."""
    embed_gallery(photos, tmp_path / "gallery", LocalEncoder(reranking))
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    collections = {"pictures": Source(reranking.root, tmp_path / "index"), "texts": text_source}
    with in_process(collections) as client:
        yield client


def test_the_best_are_ordered_by_their_scores_and_the_others_as_before(served, reranking, photos) -> None:
    plain = search(served, ASKED, k=12)["results"][0]["items"]
    answer = search(served, ASKED, k=12, rerank=8)
    found = answer["results"][0]["items"]
    files = [photos / item["id"] for item in plain[:8]]
    scores = LocalEncoder(reranking, engine="onnxruntime").scores(photos / ASKED["id"], ASKED["text"], files)
    order = np.argsort(-scores, kind="stable")
    assert [item["id"] for item in found] == [plain[place]["id"] for place in order] + [i["id"] for i in plain[8:]]
    np.testing.assert_allclose([item["rerank_score"] for item in found[:8]], scores[order], rtol=1e-3)
    assert [item["rerank_score"] for item in found[8:]] == [None] * 4
    assert answer["timings"]["rerank_ms"] > 0
    assert search(served, ASKED, k=12)["timings"]["rerank_ms"] == 0
    assert ASKED["id"] not in ids(answer["results"][0])


def test_a_file_of_the_caller_and_several_queries_are_re_ranked_as_an_item_is(served, photos) -> None:
    image = base64.b64encode((photos / ASKED["id"]).read_bytes()).decode()
    expected = ids(search(served, ASKED, k=9, rerank=9)["results"][0])
    other = {"id": "000008.jpg", "text": None}
    found = search(served, {"image": image, "text": "in blue"}, other, ASKED, k=9, rerank=9)["results"]
    assert ids(found[0]) == ids(found[2]) == expected
    assert ids(found[1]) == ids(search(served, other, k=9, rerank=9)["results"][0])
    form = served.post(
        "/v1/search",
        files={"image": (photos / ASKED["id"]).read_bytes()},
        data={"text": "in blue", "k": "9", "rerank": "9"},
    )
    assert ids(form.json()["results"][0]) == expected


def test_pages_are_cut_out_of_what_was_re_ranked(served) -> None:
    whole = search(served, ASKED, k=40, rerank=25)["results"][0]["items"]
    pages = [search(served, ASKED, k=10, offset=offset, rerank=25)["results"][0] for offset in (0, 10, 20, 30)]
    assert [item for page in pages for item in page["items"]] == whole
    assert all(page["more"] for page in pages)


def test_a_candidate_that_is_gone_or_broken_stands_behind_those_that_have_a_score(served, photos) -> None:
    best = ids(search(served, ASKED, k=10, rerank=10)["results"][0])
    (photos / best[0]).unlink()
    (photos / best[3]).write_bytes(b"no image any more")
    (photos / best[5]).write_bytes((photos / best[5]).read_bytes()[:-300])
    found = search(served, ASKED, k=10, rerank=10)["results"][0]
    unscored = {best[0], best[3], best[5]}
    assert [id for id in ids(found) if id not in unscored] == ids(found)[:7]
    assert ids(found)[:7] == [id for id in best if id not in unscored]
    assert [item["rerank_score"] is None for item in found["items"]] == [False] * 7 + [True] * 3


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"queries": [ASKED, {"text": "in blue"}]}, "UnsupportedQuery"),
        ({"queries": [ASKED, ASKED | {"also": [{"id": "000001.jpg"}]}]}, "UnsupportedQuery"),
        ({"collection": "texts", "queries": [ASKED]}, "UnsupportedQuery"),
        ({"queries": [ASKED], "rerank": 0}, "InvalidRequest"),
        ({"queries": [ASKED], "rerank": MAX_RERANK + 1}, "InvalidRequest"),
    ],
)
@pytest.mark.slow
def test_what_can_not_be_re_ranked_is_refused(served, changes: dict, kind: str) -> None:
    found = problem(served.post("/v1/search", json={"rerank": 5} | changes))
    assert (found["type"], found["status"]) == (f"urn:cirrus:{kind}", 422)
    if kind == "UnsupportedQuery":
        assert found["position"] == len(changes["queries"]) - 1


def test_a_collection_says_whether_it_re_ranks_and_its_canary_holds_both_halves(served) -> None:
    collections = served.get("/v1/collections").json()["collections"]
    assert [collection["rerank"] for collection in collections] == [True, False]
    assert served.get("/readyz").json()["parts"][0]["cosine"] > 0.99999
    search(served, ASKED, rerank=3)
    assert 'cirrus_search_duration_seconds_count{step="rerank"} 1.0' in served.get("/metrics").text
