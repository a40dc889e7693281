"""Other tools' clients and request forms: the stock `openai` and `cohere` clients, vLLM, Jina, clip-retrieval."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from starlette.testclient import TestClient

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import InvalidImage
from cirrus_client.index import open_index
from cirrus_client.service import fetch
from cirrus_client.service.collection import Source
from cirrus_client.service.fetch import ImageReader
from tests.conftest import jpeg
from tests.service.in_process import in_process
from tests.service.live import Live, live
from tests.service.test_search import problem

KEY = "k" * 24
PHOTO = f"data:image/jpeg;base64,{base64.b64encode(jpeg()).decode()}"


@pytest.fixture(scope="module")
def running(bundle, index_root, text_source, tmp_path_factory) -> Iterator[Live]:
    """A service in a process of its own, with a key, whose first collection answers texts alone as well."""
    folder = tmp_path_factory.mktemp("dialects")
    further = f"composed={bundle.root},{index_root}"
    arguments = (text_source.bundle, "--index", text_source.index, "--collection", further, "--in-process")
    with live(folder, *arguments, CIRRUS_API_KEYS=f"test={KEY}") as service:
        yield service


@pytest.fixture(scope="module")
def texts(tiny_zero_shot_bundle: Bundle) -> LocalEncoder:
    return LocalEncoder(tiny_zero_shot_bundle)


@pytest.fixture
def asked(running):
    with running.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def uri(image: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def close(found: object, expected: object) -> bool:
    return bool(np.allclose(np.array(found), np.array(expected), atol=1e-4))


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
@pytest.mark.slow
def test_the_stock_openai_client_embeds_texts(running, texts, encoding) -> None:
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY)
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model=client.models.list().data[0].id, input=["in blue", "red"], **options)
    found = [
        np.frombuffer(base64.b64decode(one.embedding), "<f4") if encoding == "base64" else one.embedding
        for one in answer.data
    ]
    assert close(found, texts.encode_queries([None, None], ["in blue", "red"]))
    assert client.models.retrieve(answer.model).id == answer.model == client.models.list().data[0].id
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens == len("in blue") + len("red") + 4


def test_the_pages_sample_of_the_openai_client_works_where_no_text_alone_is_a_query(
    running, bundle, pictures, monkeypatch
) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed")
    page = (Path(__file__).parents[2] / "docs" / "search-service.md").read_text()
    (sample,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import openai" in block)
    for shown, here in (
        ("http://127.0.0.1:8080", running.url),
        ("unused", KEY),
        ("union", "composed"),
        ("dress", "000003"),
    ):
        sample = sample.replace(f'"{shown}', f'"{here}')
    monkeypatch.chdir(pictures)
    names: dict[str, Any] = {}
    exec(sample, names)
    expected = LocalEncoder(bundle).encode_queries([pictures / "000003.jpg"], ["the same in blue"])
    assert close(names["answer"].data[0].embedding, expected[0])


def test_the_stock_openai_client_gets_typed_errors(running) -> None:
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0)
    for ask in (lambda: client.embeddings.create(model="ada", input="red"), lambda: client.models.retrieve("ada")):
        with pytest.raises(openai.NotFoundError, match="there is no collection 'ada'"):
            ask()
    with pytest.raises(openai.UnprocessableEntityError, match="composes text with an image"):
        client.embeddings.create(model="composed", input="red")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong").models.list()


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/collections", "/v1/items/{id}/image", "/v1/none"])
def test_head_is_answered_as_get_without_the_body(asked, path: str) -> None:
    found = asked.post("/v1/search", json={"queries": [{"text": "red"}], "k": 1}).json()["results"][0]["items"][0]
    path = path.replace("{id}", found["id"])
    head, whole = asked.head(path), asked.get(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert asked.get("/healthz").status_code == 200  # on the same connection


def test_head_needs_a_key_where_get_does(running) -> None:
    with running.client() as client:
        assert client.head("/v1/collections").status_code == 401


def test_the_stock_cohere_client_embeds_texts_images_and_both(running, texts, photo) -> None:
    cohere = pytest.importorskip("cohere", reason="the cohere client is not installed")
    client = cohere.ClientV2(KEY, base_url=running.url)
    named = {"model": None, "embedding_types": ["float"]}
    query = client.embed(texts=["red"], input_type="search_query", **named)
    image = client.embed(images=[uri(photo)], input_type="image", **named)
    parts = [{"type": "image_url", "image_url": {"url": uri(photo)}}, {"type": "text", "text": "red"}]
    both = client.embed(inputs=[{"content": parts}], input_type="search_query", **named)
    assert close(query.embeddings.float_, texts.encode_queries([None], ["red"]))
    assert close(image.embeddings.float_, texts.encode_targets([photo]))
    assert close(both.embeddings.float_, texts.encode_queries([photo], ["red"]))


def test_the_first_cohere_client_which_langchain_has_embeds_texts_and_images(running, texts, photo) -> None:
    cohere = pytest.importorskip("cohere", reason="the cohere client is not installed")
    client = cohere.Client(KEY, base_url=running.url)
    query = client.embed(texts=["red", "blue"], input_type="search_query")
    assert (query.response_type, query.texts) == ("embeddings_floats", ["red", "blue"])
    assert close(query.embeddings, texts.encode_queries([None, None], ["red", "blue"]))
    by_type = client.embed(texts=["red"], input_type="search_query", embedding_types=["float"], truncate="NONE")
    assert close(by_type.embeddings.float_, texts.encode_queries([None], ["red"]))
    image = client.embed(images=[uri(photo)], input_type="image")
    assert close(image.embeddings, texts.encode_targets([photo]))


def test_images_and_edits_in_every_form(asked, encoder, photo) -> None:
    coded = base64.b64encode(photo).decode()
    parts = [{"type": "image_url", "image_url": {"url": uri(photo)}}, {"type": "text", "text": "red"}]
    bare = [{"type": "image_url", "image_url": uri(photo)}, {"type": "text", "text": "red"}]
    composed, query, document = (
        encoder.encode_queries([photo], ["red"])[0],
        encoder.encode_queries([photo], [None])[0],
        encoder.encode_targets([photo])[0],
    )
    forms = [
        ({"messages": [{"role": "user", "content": parts}]}, composed),
        ({"messages": [{"role": "user", "content": bare}], "input_type": "query"}, composed),
        ({"input": [{"image": coded, "text": "red"}]}, composed),
        ({"input": [{"image": coded}]}, document),
        ({"input": [{"image": uri(photo)}], "task": "retrieval.passage"}, document),
        ({"input": uri(photo), "modality": "image"}, document),
        ({"input": [uri(photo)], "input_type": "query", "encoding_format": None}, query),
        ({"input": [uri(photo)], "task": "retrieval.query", "dimensions": 64, "user": "me"}, query),
    ]
    for body, expected in forms:
        answer = asked.post("/v1/embeddings", json={"model": "composed", **body})
        assert answer.status_code == 200, answer.text
        assert close(answer.json()["data"][0]["embedding"], expected), body.keys()
        assert answer.json()["space"] == encoder.space.fingerprint


def vllm_conversation(*parts: dict[str, Any], system: str) -> dict[str, Any]:
    """A request as vLLM's examples for Qwen3-VL-Embedding word it."""
    messages = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": list(parts)},
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
    ]
    return {"messages": messages, "continue_final_message": True, "add_special_tokens": True}


@pytest.fixture(scope="module")
def instructed(text_source: Source, tmp_path_factory) -> Callable[[dict[str, str] | None], TestClient]:
    """Return a function that serves a bundle with these instructions, as an export records them."""
    with contextlib.ExitStack() as stack:

        def serving(instructions: dict[str, str] | None) -> TestClient:
            root = tmp_path_factory.mktemp("instructed") / "tiny"
            shutil.copytree(text_source.bundle, root)
            contract = json.loads((root / "bundle.json").read_bytes()) | {"instructions": instructions}
            (root / "bundle.json").write_text(json.dumps(contract))
            return stack.enter_context(in_process({"texts": Source(root, text_source.index)}))

        yield serving


def test_a_system_message_must_be_the_bundles_instruction(instructed, texts, photo) -> None:
    own = {"encode_query": "Compose.", "encode_text_query": "Compose.", "encode_target": "Represent."}
    image, text = {"type": "image_url", "image_url": {"url": uri(photo)}}, {"type": "text", "text": "red"}
    client = instructed(own)
    for parts, system, expected in (
        ([image, text], "Compose.", texts.encode_queries([photo], ["red"])),
        ([text], " Compose.\n", texts.encode_queries([None], ["red"])),
        ([image], "Represent.", texts.encode_targets([photo])),
    ):
        answer = client.post("/v1/embeddings", json=vllm_conversation(*parts, system=system))
        assert answer.status_code == 200, answer.text
        assert close(answer.json()["data"][0]["embedding"], expected[0])
    refused = problem(client.post("/v1/embeddings", json=vllm_conversation(image, system="Compose.")))
    assert refused["type"] == "urn:cirrus:UnsupportedQuery"
    assert "reads 'Represent.'" in refused["reason"]
    assert "--option target_instruction" in refused["reason"]
    several = [{"role": "system", "content": "Compose."}, *({"content": one} for one in ("red", "blue"))]
    answer = client.post("/v1/embeddings", json={"messages": several})
    assert close([one["embedding"] for one in answer.json()["data"]], texts.encode_queries([None] * 2, ["red", "blue"]))


@pytest.mark.parametrize(("instructions", "said"), [({}, "reads none: leave it out"), (None, "export it again")])
def test_a_bundle_whose_instruction_is_none_or_not_known_refuses_one(instructed, instructions, said) -> None:
    text = {"type": "text", "text": "red"}
    refused = problem(instructed(instructions).post("/v1/embeddings", json=vllm_conversation(text, system="Compose.")))
    assert said in refused["reason"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": [{"role": "system", "content": "Compose."}]}, "InvalidRequest"),
        ({"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "b"}]}, "InvalidRequest"),
        ({"input": "red", "task": "text-matching"}, "InvalidRequest"),
        ({}, "InvalidRequest"),
        ({"input": [1, 2]}, "InvalidRequest"),
        ({"input": "red", "messages": []}, "InvalidRequest"),
        ({"input": "red", "dimensions": 8}, "InvalidRequest"),
        ({"input": "red", "input_type": "clustering"}, "InvalidRequest"),
        ({"input": "red", "input_type": "document"}, "UnsupportedQuery"),
        ({"input": [{"image": PHOTO, "text": "red"}], "input_type": "document"}, "UnsupportedQuery"),
        ({"input": [{}]}, "UnsupportedQuery"),
        ({"input": ["red"] * 257}, "LimitExceeded"),
        ({"input": [None] * 20_000}, "LimitExceeded"),
        ({"messages": [5] * 20_000}, "LimitExceeded"),
        ({"messages": [{"content": [5] * 20_000}]}, "LimitExceeded"),
        ({"input": "a" * 3_000}, "LimitExceeded"),
        ({"input": ["red", "data:image/png;base64,AAAA"]}, "InvalidImage"),
        ({"input": [{"image": "https://example.com/a.jpg"}]}, "InvalidImage"),
        ({"messages": [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}, "InvalidRequest"),
        ({"messages": [{"content": []}]}, "UnsupportedQuery"),
    ],
)
def test_wrong_embedding_requests_are_typed_problems(asked, body, kind) -> None:
    assert problem(asked.post("/v1/embeddings", json=body))["type"] == f"urn:cirrus:{kind}"


def test_a_bad_image_among_inputs_is_told_by_its_place_among_them(asked) -> None:
    bad = {"image": base64.b64encode(b"no image").decode()}
    for body in ({"input": ["red", bad]}, {"input": ["red", {"image": base64.b64encode(jpeg()[:300]).decode()}]}):
        found = problem(asked.post("/v1/embeddings", json=body))
        assert (found["type"], found["item"], found["position"]) == ("urn:cirrus:InvalidImage", "input", 1)


@pytest.mark.parametrize("ids", [[1, 2], [[1, 2], [3]]])
def test_token_ids_are_refused_with_the_way_out(asked, ids) -> None:
    """LangChain sends those of OpenAI's tokenizer, unless it is told otherwise."""
    found = problem(asked.post("/v1/embeddings", json={"input": ids}))
    assert found["field"] == "input"
    assert "check_embedding_ctx_length=False" in found["detail"]


def test_clip_retrievals_requests_are_answered_in_its_form(asked, encoder, index_root, photo) -> None:
    assert asked.get("/indices-list").json() == ["tiny-clip", "composed"]
    body = {
        "text": "red",
        "image": base64.b64encode(photo).decode(),
        "image_url": None,
        "embedding_input": None,
        "modality": "image",
        "num_images": 3,
        "num_result_ids": 7,
        "indice_name": "composed",
        "deduplicate": False,
        "use_safety_model": True,
        "aesthetic_weight": 0.5,
    }
    found = asked.post("/knn-service", json=body).json()
    saved = open_index(index_root)
    hits = saved.index.search(encoder.encode_queries([photo], ["red"]), 7)
    assert [one["id"] for one in found] == hits.rows[0].tolist()
    assert close([one["similarity"] for one in found], hits.scores[0])
    assert ["image_path" in one for one in found] == [True] * 3 + [False] * 4
    assert base64.b64decode(found[0]["image"]).startswith(b"\xff\xd8")
    rows = [one["id"] for one in found]
    described = asked.post("/metadata", json={"ids": rows, "indice_name": "composed"}).json()
    assert [one["metadata"]["image_path"] for one in described] == [item.id for item in saved.items.rows(rows)]
    front_end = {"num_images": 40, "num_result_ids": 3_000}  # what that of clip-retrieval always asks for
    assert len(asked.post("/knn-service", json={**body, **front_end}).json()) == 60
    embedding = (3 * encoder.encode_queries([photo], ["red"])[0]).tolist()  # of any length
    same = asked.post("/knn-service", json={"embedding_input": embedding, "num_images": 7, "indice_name": "composed"})
    assert [one["id"] for one in same.json()] == rows
    assert close([one["similarity"] for one in same.json()], hits.scores[0])


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/knn-service", {}, "UnsupportedQuery"),
        ("/knn-service", {"text": "red", "indice_name": "composed"}, "UnsupportedQuery"),
        ("/knn-service", {"embedding_input": [1.0]}, "InvalidRequest"),
        ("/knn-service", {"embedding_input": [0.0] * 64}, "InvalidRequest"),
        ("/knn-service", {"text": "red", "num_images": 100_000}, "InvalidRequest"),
        ("/metadata", {"ids": [-1]}, "UnknownItem"),
        ("/metadata", {"ids": [2**70]}, "UnknownItem"),
    ],
)
def test_other_wrong_requests_are_typed_problems(asked, path, body, kind) -> None:
    assert problem(asked.post(path, json=body))["type"] == f"urn:cirrus:{kind}"


class _Web(BaseHTTPRequestHandler):
    """A web server with an image, and every trick."""

    image = b""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind, _, rest = self.path.partition("?")
        self.send_response({"/image": 200, "/endless": 200, "/moved": 302}.get(kind, 404))
        if kind == "/moved":
            self.send_header("Location", rest)
        self.end_headers()
        if kind == "/image":
            self.wfile.write(self.image)
        while kind == "/endless":
            try:
                self.wfile.write(b"x" * 65_536)
            except OSError:
                return

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def web(photo) -> Iterator[str]:
    _Web.image = photo
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.slow
def test_images_are_fetched_from_allowed_hosts_alone(web, photo) -> None:
    def fetched(url: str, *hosts: str) -> bytes:
        return asyncio.run(ImageReader(max_bytes=1_000_000, hosts=hosts).read(url))

    assert fetched(f"http://{web}/image", web) == photo
    assert fetched(f"http://{web}/moved?/image", web) == photo
    _Web.asked.clear()
    with pytest.raises(InvalidImage, match="leads on more than 3 times"):
        fetched(f"http://{web}/moved?/moved", web)
    assert len(_Web.asked) == 4
    with pytest.raises(InvalidImage, match="fetches nothing from"):
        fetched(f"http://{web}/image", web.partition(":")[0])
    for hosts in ("nowhere.invalid", "nowhere.invalid:443"):  # of one name: the port is the scheme's
        with pytest.raises(InvalidImage, match="can't be fetched"):
            fetched("https://nowhere.invalid/image", hosts)
    refused = {
        f"http://{web}/image": "fetches nothing from",
        "http://169.254.169.254/latest": "fetches nothing from",
        f"http://localhost:{web.rpartition(':')[2]}/image": "not public",
        f"http://user:pass@{web}/image": "fetches nothing from",
        f"http://{web}/moved?http://169.254.169.254/": "fetches nothing from",
        f"http://{web}/moved?file:///etc/passwd": "fetches nothing from",
        f"http://{web}/endless": "more than 1,000,000 bytes",
        f"http://{web}/nowhere": "status 404",
        "http://127.0.0.1:1/image": "can't be fetched",
        "http://[": "can't be fetched",
    }
    allowed = (web, "127.0.0.1:1", f"localhost:{web.rpartition(':')[2]}")
    for url, message in refused.items():
        hosts = () if url == f"http://{web}/image" else allowed
        with pytest.raises(InvalidImage, match=message if hosts else "fetches nothing"):
            fetched(url, *hosts)


@pytest.mark.slow
def test_a_host_is_asked_at_the_address_that_was_checked(monkeypatch) -> None:
    """A name service may give another one the next time."""

    def address(*found: str) -> str:
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 443)) for one in found]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: entries)
        return asyncio.run(fetch._address("cdn.example", 443))

    assert address("93.184.216.34", "1.1.1.1") == "93.184.216.34"
    for private in ("10.0.0.5", "127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.5"):
        with pytest.raises(InvalidImage, match="not public"):
            address("93.184.216.34", private)
