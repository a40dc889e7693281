"""The nginx example of docs/deploy-on-triton.md, in front of a real server."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cirrus_client.triton.server import free_ports
from tests.conftest import jpeg

PAGE = Path(__file__).parents[2] / "docs" / "deploy-on-triton.md"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/nginx/sbin")
INFER = "/v2/models/encode_target/infer"
KEY = {"Authorization": "Bearer CHANGE-ME"}
RAW = {"Inference-Header-Content-Length": "0"}

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)"),
]


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory) -> Iterator[str]:
    """The page's configuration, with this test's ports."""
    folder = tmp_path_factory.mktemp("nginx")
    (port,) = free_ports(1)
    found = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    site = found[1].replace("listen 8443;", f"listen 127.0.0.1:{port};").replace("127.0.0.1:8000", server.http_url)
    temporary = "\n".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder / 'pid'}; error_log {folder / 'error.log'};\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{site} }}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")])
    try:
        deadline = time.monotonic() + 20
        while ask(f"http://127.0.0.1:{port}", "/nothing")[0] == 0:
            assert time.monotonic() < deadline, (folder / "error.log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def ask(proxy: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Return status and body of an answer; the status is 0 where nobody answers."""
    request = urllib.request.Request(f"{proxy}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except urllib.error.URLError:
        return 0, b""


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
