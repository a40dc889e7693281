"""The clients of a service: typed answers, typed errors, the command line, and a tool of language models."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cirrus_client import AsyncSearchClient, SearchClient
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import (
    AccessDenied,
    InvalidFilter,
    InvalidImage,
    InvalidInput,
    InvalidRequest,
    MissingPackage,
    ServerError,
    ServerUnavailable,
    UnknownCollection,
    UnknownItem,
    UnreadableImage,
)
from cirrus_client.index.filter_models import Compare, Not
from cirrus_client.retriever import open_retriever
from cirrus_client.service.client import Query
from tests.service.live import Live, live
from tests.test_cli import cirrus

pytestmark = pytest.mark.slow

KEY = "k" * 24


@pytest.fixture(scope="module")
def running(bundle, index_root, tmp_path_factory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("client")
    keys = folder / "keys"
    keys.write_text(f"test={KEY}\n")
    with live(folder, bundle.root, "--index", index_root, "--in-process", "--api-keys-file", keys) as service:
        yield service


@pytest.fixture(scope="module")
def expected(bundle, index_root, pictures) -> list[str]:
    """What is nearest to a gallery image and a text, without the image itself."""
    image = pictures / "000007.jpg"
    found = open_retriever(LocalEncoder(bundle), index_root).search(image=image, text="red", k=5)
    return [match.id for match in found if match.id != image.name][:4]


def test_both_clients_answer_as_the_library_does(running, pictures, expected) -> None:
    image = pictures / "000007.jpg"
    with SearchClient(running.url, key=KEY) as client:
        answer = client.search(image=image, text="red", k=4)
        assert [item.id for item in answer.results[0].items] == expected
        many = client.search_many([Query(id="000001.jpg"), Query(image, "red")], k=4, include_reference=True)
        assert [item.id for item in many.results[1].items if item.id != image.name][:3] == expected[:3]
        assert client.image(answer.results[0].items[0].image) == (pictures / expected[0]).read_bytes()
        assert client.item("000009.jpg").metadata["stock"] == -11
        (collection,) = client.collections()
        assert collection.images == 60

    async def ask() -> list[str]:
        async with AsyncSearchClient(running.url, key=KEY) as client:
            answers = await asyncio.gather(*(client.search(image=image, text="red", k=4) for _ in range(8)))
            assert (await client.item("000009.jpg", collection=collection.name)).id == "000009.jpg"
            assert (await client.collections())[0].images == 60
            assert await client.image(answers[0].results[0].items[0].image)
            assert len({tuple(item.id for item in one.results[0].items) for one in answers}) == 1
            return [item.id for item in answers[0].results[0].items]

    assert asyncio.run(ask()) == expected


def test_what_is_no_service_is_told_with_its_status(tmp_path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with SearchClient(f"http://127.0.0.1:{web.server_port}") as client, pytest.raises(ServerError) as refused:
            client.search(text="red")
        web.shutdown()
    assert "status 501: Unsupported method ('POST'), from a proxy before it" in str(refused.value)


def test_a_password_for_a_proxy_is_sent_and_never_shown(tmp_path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(418, self.headers["Authorization"])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with (
            SearchClient(f"http://user:secret@127.0.0.1:{web.server_port}") as client,
            pytest.raises(ServerError, match="status 418: Basic dXNlcjpzZWNyZXQ=") as refused,
        ):
            client.collections()
        web.shutdown()
    assert "secret" not in f"{refused.value} {refused.value.url} {client.url}"


def test_tls_that_fails_says_what_to_do(running, tmp_path, monkeypatch) -> None:
    with (
        SearchClient(running.url.replace("http:", "https:")) as client,
        pytest.raises(ServerUnavailable, match="there is no TLS there, try http://"),
    ):
        client.collections()
    for named in (tmp_path / "gone.pem", Path(__file__)):
        monkeypatch.setenv("SSL_CERT_FILE", str(named))
        with pytest.raises(ServerError, match="that SSL_CERT_FILE or SSL_CERT_DIR names can't be read: "):
            SearchClient(running.url)


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("ALL_PROXY", "socks5h://127.0.0.1:1080", MissingPackage, "pip install socksio"),
        ("ALL_PROXY", "ftp://proxy.example", ServerError, "the proxy that ALL_PROXY"),
        ("HTTP_PROXY", "http://[::1", ServerError, "the proxy that ALL_PROXY"),
    ],
)
def test_a_proxy_of_the_environment_that_can_not_be_used_is_told(monkeypatch, name, value, kind, message) -> None:
    monkeypatch.setenv(name, value)
    if kind is MissingPackage and importlib.util.find_spec("socksio"):
        pytest.skip("socksio is installed")
    for client in (SearchClient, AsyncSearchClient):
        with pytest.raises(kind, match=message):
            client("http://127.0.0.1:8080")


def test_an_answer_that_can_not_be_unpacked_is_a_server_error() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"junk")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with SearchClient(f"http://127.0.0.1:{web.server_port}") as client:
            with pytest.raises(ServerError, match="a body that can't be unpacked"):
                client.collections()
            with pytest.raises(InvalidInput, match="no link of the service"):
                client.image("/\x00")
        web.shutdown()


def test_the_services_errors_come_back_as_they_are(running, tmp_path) -> None:
    with SearchClient(running.url, key=KEY) as client:
        with pytest.raises(InvalidImage) as image:
            client.search_many([Query(id="000001.jpg"), Query(b"no image")])
        assert (image.value.item, image.value.position) == ("query", 1)
        with pytest.raises(InvalidFilter) as wanted:
            client.search(id="000001.jpg", filter={"column": "x", "op": "null"})
        assert wanted.value.place == "filter.column"
        with pytest.raises(UnknownCollection) as unknown:
            client.search(id="000001.jpg", collection="x")
        assert (unknown.value.name, len(unknown.value.known)) == ("x", 1)
        with pytest.raises(UnknownItem) as missing:
            client.item("../etc/passwd")
        assert missing.value.id == "../etc/passwd"
        with pytest.raises(UnreadableImage, match="query 0"):
            client.search(image=tmp_path / "none.jpg")
    with SearchClient(running.url) as anonymous, pytest.raises(AccessDenied, match="no API key"):
        anonymous.collections()


def test_options_are_what_python_has_for_them(running) -> None:
    wanted = Not(**{"not": Compare(column="stock", op="<", value=0)})
    tree = {"not": {"column": "stock", "op": "<", "value": np.int64(0)}}
    with SearchClient(running.url, key=KEY) as client:
        one, other = (
            client.search(id="000001.jpg", k=np.int64(5), filter=filter).results[0].items for filter in (wanted, tree)
        )
        assert [item.id for item in one] == [item.id for item in other]
        assert len(one) == 5
        for wrong in ({"min_score": float("nan")}, {"text": "\ud800"}, {"filter": object()}):
            with pytest.raises(InvalidRequest, match="can't be said in JSON"):
                client.search(id="000001.jpg", **wrong)
        with pytest.raises(InvalidRequest, match="not valid Unicode"):
            client.item("\ud800")


def test_a_key_is_sent_to_the_service_alone_and_is_in_no_message(running) -> None:
    with SearchClient(running.url, key=KEY) as client, pytest.raises(InvalidInput, match="no link of the service"):
        client.image("http://127.0.0.1:1/elsewhere")
    with pytest.raises(InvalidInput) as refused:
        SearchClient(running.url, key="secret\n")
    assert "secret" not in str(refused.value)


def test_a_client_that_was_closed_or_used_before_a_fork_is_refused(running) -> None:
    client = SearchClient(running.url, key=KEY)
    client.collections()
    child = os.fork()
    if child == 0:
        try:
            client.collections()
        except ServerError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    client.collections()
    for _ in range(2):
        client.close()
    with pytest.raises(ServerError, match="was closed"):
        client.collections()


def test_what_is_no_service_is_a_server_error(tmp_path) -> None:
    for url in (
        "localhost:8080",
        "http://",
        "http://127.0.0.1:x",
        "http://127.0.0.1:99999",
        "http://a\0b",
        f"http://{'a' * 64}",
    ):
        with pytest.raises(ServerError, match="expected a URL"):
            SearchClient(url)
    for timeout_s in (0, float("inf"), float("nan")):
        with pytest.raises(InvalidInput, match="more than 0"):
            SearchClient("http://127.0.0.1:1", timeout_s=timeout_s)
    with pytest.raises(ServerUnavailable, match="does not answer"):
        SearchClient("http://127.0.0.1:1").collections()


def test_the_command_line_asks_a_service(running, bundle, index_root, pictures, expected) -> None:
    asked = ("search", pictures / "000007.jpg", "red", "--url", running.url, "-k", 4, "--json", "--api-key", KEY)
    found = json.loads(cirrus(*asked))
    assert [match["id"] for match in found] == expected
    assert found[0]["image"].startswith(running.url)
    here = (*asked[:3], "--bundle", bundle.root, "--index", index_root, *asked[5:8])
    for search in (asked, here):
        narrowed = (*search, "--filter", '{"column": "sold", "op": "==", "value": true}', "--unique", "brand")
        brands = [match["metadata"]["brand"] for match in json.loads(cirrus(*narrowed)) if match["metadata"]["sold"]]
        assert len(brands) == len([*filter(None, brands)]) + brands.count(None) == 4
        assert len({*filter(None, brands)}) == len([*filter(None, brands)])
    assert "is not JSON" in cirrus(*asked, "--filter", "price < 5", fails=True)
    assert "AccessDenied" in cirrus("search", pictures / "000007.jpg", "--url", running.url, fails=True)


def test_a_language_model_finds_images_with_the_tool(running, pictures, expected) -> None:
    mcp = pytest.importorskip("mcp", reason="the extra mcp is not installed")
    import base64

    from cirrus_client.service.mcp_tool import tool_server

    image = base64.b64encode((pictures / "000007.jpg").read_bytes()).decode()

    async def ask() -> None:
        async with AsyncSearchClient(running.url, key=KEY) as client, mcp.Client(tool_server(client)) as model:
            (tool,) = (await model.list_tools()).tools
            assert tool.name == "search_images"
            assert tool.annotations.read_only_hint
            answer = await model.call_tool("search_images", {"image": image, "text": "red", "k": 4})
            found = answer.structured_content["result"]
            assert [item["id"] for item in found] == expected
            uri = await model.call_tool("search_images", {"image": f"data:image/jpeg;base64,{image}", "text": "red"})
            assert [item["id"] for item in uri.structured_content["result"]][:4] == expected
            wrong = await model.call_tool("search_images", {"image": "AAAA"})
            assert wrong.is_error
            assert "not an image" in wrong.content[0].text

    asyncio.run(ask())


def test_the_tool_runs_on_stdin_and_stdout(running, tmp_path: Path) -> None:
    mcp = pytest.importorskip("mcp", reason="the extra mcp is not installed")
    import os
    import sys

    from tests.test_command_line import CIRRUS

    command, *arguments = [*CIRRUS, "mcp", "--url", running.url]
    assert command == sys.executable
    environment = os.environ | {"CIRRUS_API_KEY": KEY}

    async def ask() -> list[str]:
        parameters = mcp.StdioServerParameters(command=command, args=arguments, env=environment)
        async with mcp.Client(mcp.stdio_client(parameters)) as model:
            return [tool.name for tool in (await model.list_tools()).tools]

    assert asyncio.run(ask()) == ["search_images"]
