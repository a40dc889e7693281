"""The Hugging Face hub where it can't be reached, as on most GPU servers: said at once, with the way out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cirrus_client.errors import ExportError
from cirrus_client.triton.server import free_ports

CHECK = "from cirrus_export.backbones.hub import check_hub_answers; check_hub_answers('a/b', ('weights.bin',))"


class WithoutFiles(BaseHTTPRequestHandler):
    """A hub that has no such repository."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), WithoutFiles) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check(endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "*"}
    return subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=60)


def test_a_hub_that_is_not_there_is_asked_once(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    told = check(f"http://127.0.0.1:{port}", tmp_path)
    assert f"ConnectionError: http://127.0.0.1:{port} can't be reached: " in told.stderr
    assert "Retrying" not in told.stderr


def test_a_hub_that_answers_is_left_to_the_download(hub: str, tmp_path: Path) -> None:
    told = check(hub, tmp_path)
    assert told.returncode == 0, told.stderr


def test_what_is_in_the_cache_is_not_asked_for(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "weights.bin").touch()
    (tmp_path / "hub" / "models--a--b" / "refs").mkdir()
    (tmp_path / "hub" / "models--a--b" / "refs" / "main").write_text("0123")
    (port,) = free_ports(1)
    told = check(f"http://127.0.0.1:{port}", tmp_path)
    assert told.returncode == 0, told.stderr


@pytest.mark.export
def test_weights_that_can_not_be_fetched_are_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from cirrus_export.backbones.registry import load_backbone

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ExportError,
        match=r"weights 'openai' of RN50 can't be fetched \(http.* can't be reached: .*--pretrained openai=FILE",
    ):
        load_backbone("RN50", "openai")
