"""A real nginx in front of something, with a configuration of a docs page."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cirrus_client.triton.server import free_ports

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/nginx/sbin")
_PAGES = Path(__file__).parents[1] / "docs"

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)")


@contextmanager
def nginx(folder: Path, page: str, behind: str, *, below: str = "/") -> Iterator[str]:
    """Run the configuration of a docs page, with a port of its own, and yield its URL.

    behind: what the page has as 127.0.0.1:8000 or :8080. below: the path of the host below which it is.
    """
    (port,) = free_ports(1)
    found = re.search(r"```nginx\n(.*?)```", (_PAGES / page).read_text(), re.DOTALL)
    assert found is not None
    site = found[1].replace("listen 8443;", f"listen 127.0.0.1:{port};")
    site = re.sub(r"127\.0\.0\.1:80[08]0", behind if below == "/" else f"{behind}/", site)
    site = site.replace("location / {", f"location {below} {{")
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
