"""The nginx example of docs/search-service.md, in front of a real service: its page works there."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cirrus_client import SearchClient
from tests.nginx import ask, needs_nginx, nginx
from tests.service.live import live

KEY = "k" * 24

pytestmark = [pytest.mark.slow, needs_nginx]


@pytest.fixture(scope="module")
def proxy(bundle, index_root, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("proxied")
    (folder / "keys").write_text(f"page={KEY}\n", encoding="utf-8-sig")  # as editors of Windows write it
    options = ("--index", index_root, "--in-process", "--api-keys-file", folder / "keys")
    with (
        live(folder, bundle.root, *options) as service,
        nginx(folder, "search-service.md", service.url.removeprefix("http://")) as url,
    ):
        yield url


def test_the_page_may_call_the_host_that_it_came_from(proxy: str) -> None:
    assert ask(proxy, "/")[0] == 200
    opening = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    body = json.dumps({"queries": [{"id": "000001.jpg"}]}).encode()
    assert ask(proxy, "/v1/search", body, **opening, Origin=proxy)[0] == 200
    status, refused = ask(proxy, "/v1/search", body, **opening, Origin="https://shop.example")
    assert status == 403
    assert b"a proxy passes Host on, and --cors-origin lets other pages in" in refused


def test_the_client_asks_through_the_proxy(proxy: str) -> None:
    with SearchClient(proxy, key=KEY) as client:
        assert client.search(id="000001.jpg", k=1).results[0].items
