"""The nginx example of docs/deploy-on-triton.md, in front of a real server."""

from __future__ import annotations

import gzip
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.conftest import jpeg
from tests.nginx import ask, needs_nginx, nginx

INFER = "/v2/models/encode_target/infer"
KEY = {"Authorization": "Bearer CHANGE-ME"}
RAW = {"Inference-Header-Content-Length": "0"}

pytestmark = [pytest.mark.triton, needs_nginx]


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory) -> Iterator[str]:
    """The page's configuration, with this test's ports."""
    with nginx(tmp_path_factory.mktemp("nginx"), "deploy-on-triton.md", server.http_url) as url:
        yield url


def test_inference_and_readiness_pass_with_the_key(proxy: str) -> None:
    status, body = ask(proxy, INFER, jpeg(), **KEY, **RAW)
    assert status == 200
    assert b"embedding" in body
    assert ask(proxy, "/v2/health/ready", **KEY)[0] == 200
    assert ask(proxy, "/v2/models/encode_target/config", **KEY)[0] == 200


def test_nothing_passes_without_the_key(proxy: str) -> None:
    assert ask(proxy, INFER, jpeg(), **RAW)[0] == 401
    assert ask(proxy, INFER, jpeg(), **RAW, Authorization="Bearer guess")[0] == 401


@pytest.mark.parametrize(
    "path",
    ["/", "/v2", "/v2/repository/index", "/v2/logging", "/v2/systemsharedmemory/status", "/v2/models/stats",
     "/v2/models/encode_target/stats", "/v2/models/../logging", "/v2/models/%2e%2e/logging", "/metrics"],
)  # fmt: skip
def test_administration_does_not_pass(proxy: str, path: str) -> None:
    assert ask(proxy, path, b"{}", **KEY)[0] in (400, 403)


def test_a_packed_body_and_a_huge_one_do_not_pass(proxy: str) -> None:
    packed = gzip.compress(bytes(10**7))
    assert ask(proxy, INFER, packed, **KEY, **RAW, **{"Content-Encoding": "gzip"})[0] == 415
    request = urllib.request.Request(f"{proxy}{INFER}", headers=KEY | {"Content-Length": str(2**30)}, method="POST")
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(request, timeout=30)
