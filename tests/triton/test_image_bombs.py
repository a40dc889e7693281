"""What a real server does with decompression bombs and with requests of too many pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from cirrus_client import LocalEncoder, TritonEncoder
from cirrus_client.triton.server import TritonServer, free_ports
from tests.bombs import jpeg_of_scans, png_of_zeros, tiff_of_zeros, webp_of_one_colour
from tests.conftest import jpeg

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def small_server(tiny_served) -> Iterator[TritonServer]:
    http, grpc, metrics = free_ports(3)
    repository = tiny_served.root / "triton" / "python"
    with TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics) as running:
        yield running


def resident_mib(server: TritonServer) -> int:
    """Return the memory that the server and its Python models have for themselves."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended meanwhile
            continue
        if server.pid in (int(fields["Pid"]), int(fields["PPid"])):
            total += int(fields["RssAnon"].split()[0]) // 1024
    return total


def refused(server: TritonServer, images: list[bytes]) -> InferenceServerException:
    """Send images as a client without our checks does, and return the server's refusal."""
    tensor = grpcclient.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
    client = grpcclient.InferenceServerClient(server.grpc_url)
    try:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("encode_target", [tensor])
    finally:
        client.close()
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", caught.value
    return caught.value


def test_a_request_of_too_many_pixels_is_refused_before_any_is_decoded(small_server) -> None:
    large = webp_of_one_colour(16_000, 6000, padding=10_000)
    started = time.monotonic()
    refusal = refused(small_server, [jpeg(), *[large] * 11])
    assert "cirrus:InvalidImage@11: the images before this one reach the limit" in refusal.message()
    assert time.monotonic() - started < 10  # to decode them takes minutes


def test_a_client_splits_what_a_request_may_not_hold(small_server, tiny_served, monkeypatch) -> None:
    monkeypatch.setattr("cirrus_client.image.request.MAX_REQUEST_PIXELS", 100_000)
    images = [jpeg("teal", (100 + 30 * place, 200)) for place in range(12)]
    local, texts = LocalEncoder(tiny_served), ["in blue"] * len(images)
    with TritonEncoder(small_server.grpc_url) as triton:
        np.testing.assert_allclose(triton.encode_targets(images), local.encode_targets(images), atol=1e-5)
        expected = local.encode_queries(images, texts)
        np.testing.assert_allclose(triton.encode_queries(images, texts), expected, atol=1e-5)


@pytest.mark.slow
def test_a_stream_of_bombs_leaves_the_server_as_small_as_it_was(small_server, tiny_served) -> None:
    bombs = [
        *(png_of_zeros(1, 100_000_000), png_of_zeros(10_000, 10_000)[:150_000]),
        *(tiff_of_zeros(9000, 9000, cut_at=40_000), webp_of_one_colour(16_000, 6000)),
        *(jpeg_of_scans(9000, 9000, 8)[:100_000], jpeg_of_scans(4000, 4000, 5000)),
    ]
    expected = LocalEncoder(tiny_served).encode_targets([jpeg()])
    with TritonEncoder(small_server.grpc_url) as triton:
        triton.encode_targets([jpeg("red", (1000 + place, 900)) for place in range(8)])
        before = resident_mib(small_server)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda bomb: refused(small_server, [jpeg(), bomb, bomb]), bombs * 6))
        np.testing.assert_allclose(triton.encode_targets([jpeg()]), expected, atol=1e-5)
    decoded_bomb_mib = 9000 * 9000 * 3 / 2**20
    assert resident_mib(small_server) - before < 2 * decoded_bomb_mib  # the allocator keeps up to one of the 72
