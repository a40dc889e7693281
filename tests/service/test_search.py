"""Searches over HTTP: references of every kind, and the answer that the library gives."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from urllib.parse import quote, urljoin

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import embed_gallery, open_source, read_gallery
from cirrus_client.index import build_index, open_index
from cirrus_client.retriever import open_retriever
from cirrus_client.service import images
from cirrus_client.service.collection import Source
from tests.conftest import BAD_IMAGES, record_room
from tests.service.in_process import in_process


def search(client: TestClient, *queries: dict, **options: object) -> dict:
    answer = client.post("/v1/search", json={"queries": list(queries), **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(result: dict) -> list[str]:
    return [item["id"] for item in result["items"]]


def problem(answer) -> dict:
    assert answer.headers["content-type"] in ("application/problem+json", "application/json"), answer.text
    assert answer.json()["status"] == answer.status_code
    return answer.json()


def test_an_item_of_any_name_is_found_with_its_image(bundle, encoder, pictures: Path, tmp_path: Path) -> None:
    """A line break in a name made a link that led nowhere."""
    names = ["new\nline.jpg", "\n.jpg", "end.jpg\n/image.jpg", "a b/ü?#&.jpg", "image/..a.jpg"]
    names.append("/".join(["x" * 120] * 8) + ".jpg")
    for name, picture in zip(names, sorted(pictures.iterdir()), strict=False):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / "pictures" / name)
    embed_gallery(tmp_path / "pictures", tmp_path / "gallery", encoder)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    with in_process({"named": Source(bundle.root, tmp_path / "index")}) as client:
        for name in names:
            (found,) = search(client, {"id": name}, k=1, include_reference=True)["results"][0]["items"]
            assert found["id"] == name
            assert client.get(found["image"]).content == (tmp_path / "pictures" / name).read_bytes()
            assert client.get(f"/v1/items/{quote(name, safe='')}").json()["id"] == name


@pytest.fixture(scope="module")
def expected(encoder: LocalEncoder, index_root: Path, photo: bytes) -> list[str]:
    return [match.id for match in open_retriever(encoder, index_root).search(image=photo, text="in blue", k=6)]


def test_a_file_base64_and_a_data_uri_give_the_librarys_answer(client, photo, expected) -> None:
    text = base64.b64encode(photo).decode()
    by_form = client.post("/v1/search", files={"image": photo}, data={"text": "in blue", "k": "6"}).json()
    by_json = search(client, {"image": text, "text": "in blue"}, k=6)
    by_uri = search(client, {"image": f"data:image/jpeg;base64,{text}", "text": "in blue"}, k=6)
    others = [id for id in expected if id != "000007.jpg"]
    assert len(others) == 5, "the photo is one of the gallery's"
    assert [ids(answer["results"][0])[:5] for answer in (by_form, by_json, by_uri)] == [others] * 3
    with_itself = search(client, {"image": text, "text": "in blue"}, k=6, include_reference=True)["results"][0]
    assert ids(with_itself) == expected


def test_an_item_stands_for_its_image_and_is_left_out_of_the_answer(client, expected) -> None:
    found = search(client, {"id": "000007.jpg", "text": "in blue"}, k=5)["results"][0]
    assert ids(found) == [id for id in expected if id != "000007.jpg"][:5]
    with_itself = search(client, {"id": "000007.jpg", "text": "in blue"}, k=6, include_reference=True)["results"][0]
    assert ids(with_itself) == expected


def test_several_queries_in_one_call_are_answered_as_alone(client, photo) -> None:
    queries = [{"id": f"{n:06}.jpg", "text": text} for n, text in ((1, "red"), (2, None), (3, "with stripes"))]
    together = search(client, *queries, k=4)["results"]
    assert [ids(result) for result in together] == [ids(search(client, q, k=4)["results"][0]) for q in queries]


def test_pages_of_an_answer_are_the_whole_answer(client) -> None:
    query = {"id": "000004.jpg"}
    whole = search(client, query, k=59)["results"][0]
    pages = [search(client, query, k=20, offset=offset)["results"][0] for offset in (0, 20, 40)]
    assert [item for page in pages for item in page["items"]] == whole["items"]
    assert [page["more"] for page in pages] == [True, True, False]
    assert not whole["more"]
    assert [item["rank"] for item in whole["items"]] == list(range(1, 60))


def test_an_answer_names_space_bundle_metadata_and_where_its_time_went(client, encoder) -> None:
    answer = search(client, {"id": "000008.jpg"}, k=60)
    assert answer["space"] == encoder.space.fingerprint
    assert answer["bundle"]["name"] == encoder.bundle.spec.name
    item = next(item for item in answer["results"][0]["items"] if item["id"] == "000009.jpg")
    assert item["metadata"] == {
        "price": 13.5,
        "stock": -11,
        "brand": "a",
        "sold": True,
        "since": "2026-10-10",
        "product": "product 2",
        "tags": ["9"],
    }
    times = answer["timings"]
    assert times["total_ms"] >= times["encode_ms"] > 0


def test_a_link_leads_to_the_image_and_to_a_thumbnail(client, pictures) -> None:
    item = search(client, {"id": "000008.jpg"}, k=1)["results"][0]["items"][0]
    whole = client.get(item["image"])
    assert whole.content == (pictures / item["id"]).read_bytes()
    assert whole.headers["content-type"] == "image/jpeg"
    small = client.get(item["image"] + "&size=32")
    assert max(Image.open(io.BytesIO(small.content)).size) == 32
    again = client.get(item["image"] + "&size=32", headers={"If-None-Match": small.headers["etag"]})
    assert again.status_code == 304
    older = client.get(item["image"] + "&size=32", headers={"If-None-Match": whole.headers["etag"]})
    assert older.content == small.content


def test_a_thumbnail_shows_what_is_transparent_as_a_page_does() -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    for image in (clear, clear.convert("LA"), clear.convert("P")):
        assert images._small(image, 32).getpixel((0, 0)) == (255, 255, 255)


def test_a_thumbnail_of_a_large_image_waits_for_room(client, monkeypatch) -> None:
    taken = record_room(images, monkeypatch)
    assert client.get("/v1/items/000008.jpg/image?size=33").status_code == 200
    assert taken
    assert min(taken) > 0


def test_a_link_survives_a_browser_whatever_the_path_of_the_item(serve, encoder, pictures, tmp_path) -> None:
    """Lists made by `find .` name images like `./a.jpg`, and a browser makes `/v1/items/a.jpg` of that."""
    for folder in (".hidden", "plain"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    paths = [
        "./000001.jpg",
        ".hidden/000002.jpg",
        "plain/../000003.jpg",
        f"{tmp_path}/photos//000004.jpg",
        "plain/5 %.jpg",
        "plain/image",
    ]
    for picture, path in zip(sorted(pictures.iterdir()), paths, strict=False):
        (tmp_path / "photos" / path).write_bytes(picture.read_bytes())
    (tmp_path / "photos" / "list.txt").write_text("\n".join(paths))
    embed_gallery(open_source(str(tmp_path / "photos" / "list.txt")), tmp_path / "gallery", encoder)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    client = serve(index=tmp_path / "index")
    found = search(client, {"id": paths[0]}, k=10, include_reference=True)["results"][0]["items"]
    assert {item["id"] for item in found} == set(paths)
    for item in found:
        as_a_browser_sends_it = urljoin("http://localhost/", item["image"])
        image = client.get(as_a_browser_sends_it)
        assert image.content == (tmp_path / "photos" / item["id"]).read_bytes(), as_a_browser_sends_it
        assert client.get(f"/v1/items/{quote(item['id'], safe='')}").json()["id"] == item["id"]


def test_texts_alone_are_answered_where_the_recipe_does(client) -> None:
    assert len(ids(search(client, {"text": "red"}, collection="texts")["results"][0])) == 10
    refused = problem(client.post("/v1/search", json={"queries": [{"id": "000001.jpg"}, {"text": "red"}]}))
    assert (refused["type"], refused["position"]) == ("urn:cirrus:UnsupportedQuery", 1)


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_a_problem_that_names_the_query(client, kind: str) -> None:
    content, reason = BAD_IMAGES[kind]
    image = base64.b64encode(content).decode() or "data:;base64,"
    found = problem(client.post("/v1/search", json={"queries": [{"id": "000001.jpg"}, {"image": image}]}))
    assert (found["type"], found["status"], found["position"]) == ("urn:cirrus:InvalidImage", 422, 1)
    assert reason in found["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ({"queries": []}, "InvalidRequest", 422),
        ({"queries": [{"text": "a"}] * 33}, "InvalidRequest", 422),
        ({"queries": [{}]}, "UnsupportedQuery", 422),
        ({"queries": [{"id": "nowhere.jpg"}]}, "UnknownItem", 404),
        ({"queries": [{"id": "000001.jpg", "image": "AAAA"}]}, "UnsupportedQuery", 422),
        ({"queries": [{"id": "000001.jpg"}], "k": 0}, "InvalidRequest", 422),
        ({"queries": [{"id": "000001.jpg"}], "nonsense": 1}, "InvalidRequest", 422),
        ({"queries": [{"id": "000001.jpg"}], "collection": "none"}, "UnknownCollection", 404),
        ({"queries": [{"id": "000001.jpg"}], "collection": "pictures@0000"}, "UnknownCollection", 404),
        ({"queries": [{"image": "https://example.com/a.jpg"}]}, "InvalidImage", 422),
        ({"queries": [{"image": "data:image/jpeg,abc"}]}, "InvalidImage", 422),
    ],
)
def test_a_wrong_request_is_a_typed_problem(client, body: dict, kind: str, status: int) -> None:
    found = problem(client.post("/v1/search", json=body))
    assert (found["type"], found["status"]) == (f"urn:cirrus:{kind}", status)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"queries": "\\ud800"}'])
def test_a_body_that_is_no_request_is_a_problem(client, content: bytes) -> None:
    assert problem(client.post("/v1/search", content=content))["type"] == "urn:cirrus:InvalidRequest"


@pytest.mark.parametrize(
    ("files", "data"),
    [
        ({"text": b"in blue"}, {}),
        ({"image": b"x", "k": b"\xff"}, {}),
        ({"image": b"x"}, {"k": "many"}),
        ({"image": b"x"}, {"filter": "price < 5"}),
        ({"image": b"x"}, {"nonsense": "1"}),
        ({"image": b"x"}, {"queries": "[]"}),
    ],
)
def test_a_form_with_wrong_fields_is_a_problem(client, files: dict, data: dict) -> None:
    assert problem(client.post("/v1/search", files=files, data=data))["type"] == "urn:cirrus:InvalidRequest"


def test_a_form_whose_file_is_empty_is_no_search_by_text_alone(client) -> None:
    form = {"text": "in blue", "collection": "texts"}
    found = problem(client.post("/v1/search", files={"image": ("dress.jpg", b"")}, data=form))
    assert (found["type"], found["reason"]) == ("urn:cirrus:InvalidImage", "the image is empty (0 bytes)")
    chosen = b'--x\r\nContent-Disposition: form-data; name="image"; filename=""\r\n\r\n\r\n'
    fields = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{form[name]}\r\n'.encode() for name in form]
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    none_chosen = client.post("/v1/search", content=chosen + b"".join(fields) + b"--x--\r\n", headers=kind)
    by_text = search(client, {"text": "in blue"}, collection="texts")
    assert ids(none_chosen.json()["results"][0]) == ids(by_text["results"][0])


def test_a_form_that_was_cut_off_is_no_search_without_its_last_field(client) -> None:
    """The filter behind which the form ended was left out, and everything was searched."""
    fields = {"text": "in blue", "collection": "texts", "filter": '{"column": "x", "op": "null"}'}
    form = "".join(f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields)
    for content_type in ("multipart/form-data; boundary=x", 'multipart/form-data; boundary="x"; charset=utf-8'):
        cut = client.post("/v1/search", content=form.encode(), headers={"Content-Type": content_type})
        assert "it ends without its last boundary" in problem(cut)["detail"]
        whole = client.post("/v1/search", content=f"{form}--x--".encode(), headers={"Content-Type": content_type})
        assert problem(whole)["type"] == "urn:cirrus:InvalidFilter"


def test_a_field_of_a_form_that_is_not_json_is_told_with_what_json_is(client) -> None:
    """Python's clients send True for a boolean."""
    found = problem(client.post("/v1/search", files={"image": b"x"}, data={"include_reference": "True"}))
    assert found["field"] == "include_reference"
    assert "is not JSON, like 10, true, or {...}: it is 'True'" in found["detail"]


def test_base64_may_be_broken_into_lines(client, photo, expected) -> None:
    text = base64.encodebytes(photo).decode()
    for image in (text, f"data:image/jpeg;base64,{text}"):
        found = search(client, {"image": image, "text": "in blue"}, k=6, include_reference=True)
        assert ids(found["results"][0]) == expected


def test_terms_are_added_by_their_weights(client, encoder, index_root, pictures) -> None:
    second = base64.b64encode((pictures / "000002.jpg").read_bytes()).decode()
    terms = [{"image": second, "text": "red", "weight": 0.5}, {"id": "000030.jpg", "weight": -0.7}]
    found = search(client, {"id": "000001.jpg", "also": terms}, k=5)["results"][0]
    images = [pictures / f"{n:06}.jpg" for n in (1, 2, 30)]
    one, two, three = encoder.encode_queries(images, [None, "red", None])
    wanted = one + 0.5 * two - 0.7 * three
    hits = open_index(index_root).index.search((wanted / np.linalg.norm(wanted))[None], 10)
    items = [item.id for item in open_index(index_root).items.rows(hits.rows[0].tolist())]
    assert ids(found) == [id for id in items if id not in ("000001.jpg", "000002.jpg", "000030.jpg")][:5]
    whole = [
        {"id": f"{n:06}.jpg", "also": [{"id": f"{m:06}.jpg", "text": f"{n} {m}"} for m in range(8)]} for n in range(32)
    ]
    assert client.post("/v1/search", json={"queries": whole, "k": 1}).status_code == 200, "the largest request"
    opposite = [{"id": "000001.jpg", "weight": -1}]
    cancelled = client.post("/v1/search", json={"queries": [{"id": "000001.jpg", "also": opposite}]})
    assert problem(cancelled)["type"] == "urn:cirrus:UnsupportedQuery"


def test_collections_say_what_they_answer_and_what_their_columns_hold(client, bundle) -> None:
    pictures, texts = client.get("/v1/collections").json()["collections"]
    assert pictures["accepts"] == ["image", "image+text"]
    assert "text" in texts["accepts"]
    columns = {column["name"]: column for column in pictures["columns"]}
    assert {name: column["type"] for name, column in columns.items()} == {
        "price": "number",
        "stock": "integer",
        "brand": "string",
        "sold": "boolean",
        "since": "date",
        "product": "string",
        "tags": "other",
    }
    assert columns["brand"]["values"] == ["a", "b", "c"]
    assert (columns["stock"]["low"], columns["stock"]["high"]) == (-19, 39)
    assert pictures["images"] == 60


def test_an_item_is_found_by_its_id(client) -> None:
    item = client.get("/v1/items/000009.jpg").json()
    assert item["metadata"]["stock"] == -11
    assert client.get(item["image"]).status_code == 200
    assert problem(client.get("/v1/items/000009.png"))["type"] == "urn:cirrus:UnknownItem"
