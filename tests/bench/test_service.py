"""The bench of the search service: what it serves, and how it asks."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the service is not installed (pip install 'cirrus-cir[service]')")
pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'cirrus-cir[search]')")

from cirrus_bench.errors import PeerError
from cirrus_bench.service import measure
from cirrus_bench.service.load import Caller, at_a_rate, in_flight
from cirrus_bench.service.subjects import index_of, running, served_copy
from cirrus_client.bundle import Bundle
from cirrus_client.index import open_index

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def index(tiny_bundle: Bundle, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = sorted(pictures.iterdir())[:5]
    return index_of(tiny_bundle.spec.space, photos, 40, tmp_path_factory.mktemp("bench") / "served")


def test_an_index_has_the_photos_over_and_over(index: Path, pictures: Path) -> None:
    saved = open_index(index)
    assert len(saved.items) == 40
    first = (index.parent / "images" / "000000.jpg").read_bytes()
    assert first == (index.parent / "images" / "000005.jpg").read_bytes()
    assert first == min(pictures.iterdir()).read_bytes()


def test_a_served_copy_batches_as_it_is_told_and_counts_as_verified(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = served_copy(tiny_bundle, tmp_path / "copy", max_batch=3)
    assert copy.spec.max_batch == 3
    assert copy.spec.model_copy(update={"max_batch": tiny_bundle.spec.max_batch}) == tiny_bundle.spec


def test_a_connection_that_the_server_closed_while_it_was_idle_is_opened_again() -> None:
    class Forgetful(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True

    with HTTPServer(("127.0.0.1", 0), Forgetful) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            ask = Caller(f"http://127.0.0.1:{server.server_port}")
            assert [ask.post(body) for body in (b"1", b"2")] == [b"1", b"2"]
        finally:
            server.shutdown()


def test_a_service_is_asked_and_its_errors_are_counted(tiny_bundle: Bundle, index: Path, tmp_path: Path) -> None:
    good = json.dumps({"queries": [{"id": "000001.jpg", "text": "in blue"}], "k": 3}).encode()
    unknown = json.dumps({"queries": [{"id": "nowhere.jpg"}]}).encode()
    bundle = served_copy(tiny_bundle, tmp_path / "copy", max_batch=8)
    with running(bundle, index, memory_mib=1) as url:
        latency, errors = in_flight(Caller(url), [good, good, unknown, good], 2)
        steady = at_a_rate(Caller(url), [good, unknown], requests_per_s=20, seconds=1)
    assert (latency.concurrency, errors) == (2, 1)
    assert 0 < latency.p50_ms <= latency.p95_ms <= latency.p99_ms
    assert (steady.requests, steady.errors) == (20, 10)
    assert steady.seconds >= 0.9


def test_a_time_without_an_answer_is_no_figure(tiny_bundle: Bundle, pictures: Path) -> None:
    def refuses(body: bytes) -> tuple[float, bool]:
        return 1e-4, False

    photos = sorted(pictures.iterdir())[:16]
    with pytest.raises(PeerError, match="the service refused a query"):
        measure._references(tiny_bundle, refuses, photos)
