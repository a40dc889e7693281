"""Where the environment names a proxy, as in many companies, this machine is asked directly all the same."""

from __future__ import annotations

import asyncio
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import ServerError
from cirrus_client.gallery import embed_gallery
from cirrus_client.hosts import is_this_machine
from cirrus_client.index import BuildOptions, build_index, open_index
from cirrus_client.names import Transport
from cirrus_client.triton.encoder import AsyncTritonEncoder, TritonEncoder
from cirrus_client.triton.server import TritonServer, free_ports


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a proxy that is not there. Whoever asks it gets no answer."""
    (port,) = free_ports(1)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{port}")
    return f"127.0.0.1:{port}"


@pytest.mark.triton
def test_a_triton_is_started_and_encodes(tiny_served, pictures: Path) -> None:
    images = sorted(pictures.iterdir())[:2]
    expected = LocalEncoder(tiny_served).encode_targets(images)

    async def ask(url: str, transport: Transport) -> np.ndarray:
        async with AsyncTritonEncoder(url, transport=transport) as encoder:
            return await encoder.encode_targets(images)

    http, grpc, metrics = free_ports(3)
    repository = tiny_served.root / "triton" / "python"
    with TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics):
        for host in ("127.0.0.1", "localhost"):
            for transport, port in ((Transport.GRPC, grpc), (Transport.HTTP, http)):
                with TritonEncoder(f"{host}:{port}", transport=transport) as encoder:
                    np.testing.assert_allclose(encoder.encode_targets(images), expected, atol=1e-5)
                answer = asyncio.run(ask(f"{host}:{port}", transport))
                np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_a_search_service_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("httpx2", reason="the extra `service` is not installed")
    from cirrus_client.service.client import SearchClient

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost"):
            with SearchClient(f"http://{host}:{web.server_port}") as client, pytest.raises(ServerError, match="501"):
                client.search(text="red")
        web.shutdown()


@pytest.mark.slow
def test_an_embedded_milvus_is_built_and_searched(tiny_bundle, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite", reason="Milvus is not installed (pip install 'cirrus-cir[milvus-lite]')")
    encoder = LocalEncoder(tiny_bundle)
    embed_gallery(pictures, tmp_path / "gallery", encoder)
    options = BuildOptions(uri=str(tmp_path / "milvus.db"), collection="catalogue")
    build_index(tmp_path / "gallery", tmp_path / "index", backend="milvus", options=options)
    opened = open_index(tmp_path / "index")
    assert len(opened.index.search(encoder.encode_targets(sorted(pictures.iterdir())[:1]), 5).rows[0]) == 5


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("10.0.0.7", False),
        ("triton", False),
        ("", False),
    ],
)
def test_other_machines_are_asked_as_the_environment_says(host: str, here: bool) -> None:
    assert is_this_machine(host) is here
