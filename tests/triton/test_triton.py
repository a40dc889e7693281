"""Real requests to a real Triton server, bad ones included."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from cirrus_client.encoders import LocalEncoder
from cirrus_client.ensemble import TOKENIZE, bytes_array
from cirrus_client.errors import (
    BundleError,
    ExportError,
    InvalidImage,
    InvalidText,
    ServerError,
    ServerTimeout,
    ServerUnavailable,
    UnsupportedQuery,
)
from cirrus_client.names import TensorName, Transport
from cirrus_client.replay import TritonRunner
from cirrus_client.tokenizer import Tokenizer
from cirrus_client.triton.encoder import AsyncTritonEncoder, TritonEncoder
from cirrus_client.triton.requests import RetryPolicy
from cirrus_client.triton.served_names import ServedNames
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.repository import Flavour, write_shared_repository
from tests.conftest import BAD_IMAGES, jpeg
from tests.torture.mixed_load import is_gone, wait_until

pytestmark = pytest.mark.triton
PROTOCOLS = list(Transport)
IMPATIENT = RetryPolicy(attempts=2, first_pause_s=0.05)


def url(server: TritonServer, protocol: Transport) -> str:
    return server.grpc_url if protocol is Transport.GRPC else server.http_url


@pytest.fixture(params=PROTOCOLS)
def triton(request, server) -> TritonEncoder:
    return TritonEncoder(url(server, request.param), transport=request.param)


def test_the_server_gives_the_local_numbers(triton, encoder, photos) -> None:
    images = sorted(photos.iterdir())[:5]
    texts = ["in blue", None, "with short sleeves and stripes", "", "longer"]
    assert triton.space == encoder.space
    np.testing.assert_allclose(triton.encode_queries(images, texts), encoder.encode_queries(images, texts), atol=1e-5)
    np.testing.assert_allclose(triton.encode_targets(images), encoder.encode_targets(images), atol=1e-5)


def test_more_than_a_batch_is_split(triton, encoder) -> None:
    images = [jpeg("navy", (100 + side, 130)) for side in range(70)]
    np.testing.assert_allclose(triton.encode_targets(images), encoder.encode_targets(images), atol=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_asyncio_twin_gives_the_same(server, encoder, photos, protocol) -> None:
    images = sorted(photos.iterdir())[:3]

    async def run():
        twin = AsyncTritonEncoder(url(server, protocol), transport=protocol)
        try:
            with pytest.raises(InvalidImage, match="query 1: the image is empty"):
                await twin.encode_queries([images[0], b""], ["a", "b"])
            return await twin.encode_queries(images, ["in red"] * 3), await twin.encode_targets(images)
        finally:
            await twin.close()

    queries, targets = asyncio.run(run())
    np.testing.assert_allclose(queries, encoder.encode_queries(images, ["in red"] * 3), atol=1e-5)
    np.testing.assert_allclose(targets, encoder.encode_targets(images), atol=1e-5)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_a_typed_error_with_its_place_and_reason(triton, name) -> None:
    image, reason = BAD_IMAGES[name]
    with pytest.raises(InvalidImage, match=f"image 1: .*{reason}"):
        triton.encode_targets([jpeg(), image])
    with pytest.raises(InvalidImage, match=f"query 0: .*{reason}"):
        triton.encode_queries([image], ["in red"])
    assert triton.encode_targets([jpeg()]).shape == (1, 64)


def test_a_text_of_ten_thousand_words_is_a_typed_error(triton) -> None:
    with pytest.raises(InvalidText, match="query 0: the text has 59,999 characters, the limit is 4,096"):
        triton.encode_queries([jpeg()], [" ".join(["plaid"] * 10_000)])
    assert triton.encode_queries([jpeg()], ["in plaid"]).shape == (1, 64)


def test_a_query_without_an_image_is_refused(triton) -> None:
    with pytest.raises(UnsupportedQuery, match="query 0: it has no image"):
        triton.encode_queries([None], ["a red dress"])


def test_a_wrong_dtype_is_refused_by_name(server) -> None:
    client = grpcclient.InferenceServerClient(server.grpc_url)
    tensor = grpcclient.InferInput("image", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), dtype=np.float32))
    with pytest.raises(InferenceServerException, match=r"'image'.*FP32.*BYTES"):
        client.infer("encode_target", [tensor])
    assert client.is_server_ready()


def test_an_absent_text_is_the_empty_text(server, encoder) -> None:
    client = grpcclient.InferenceServerClient(server.grpc_url)
    image = grpcclient.InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[jpeg("teal")]], dtype=np.object_))
    embedding = client.infer("encode_query", [image]).as_numpy("embedding")
    np.testing.assert_allclose(embedding, encoder.encode_queries([jpeg("teal")], [""]), atol=1e-5)


def test_bad_requests_of_a_batch_leave_the_others_answered(server, encoder) -> None:
    triton = TritonEncoder(server.grpc_url)
    bad = [content for content, _ in BAD_IMAGES.values()]
    images = [bad[place % len(bad)] if place % 3 == 0 else jpeg("green", (90 + place, 120)) for place in range(48)]

    def encode(image: bytes):
        try:
            return triton.encode_targets([image])[0]
        except InvalidImage as error:
            return error

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(encode, images))
    good = [place for place in range(48) if place % 3]
    assert all(isinstance(answers[place], InvalidImage) for place in range(0, 48, 3))
    np.testing.assert_allclose(
        np.stack([answers[place] for place in good]),
        encoder.encode_targets([images[place] for place in good]),
        atol=1e-5,
    )


def cache_hits(server: TritonServer, model: str) -> int:
    page = urllib.request.urlopen(f"http://{server.host}:{server.metrics_port}/metrics", timeout=5).read().decode()
    line = next(line for line in page.splitlines() if line.startswith(f'nv_cache_num_hits_per_model{{model="{model}"'))
    return int(float(line.rsplit(" ", 1)[1]))


def test_a_repeated_query_is_a_cache_hit_and_a_bad_one_never_is(server) -> None:
    triton = TritonEncoder(server.grpc_url)
    image = jpeg("olive", (77, 99))
    first = triton.encode_queries([image], ["in red"])
    before = cache_hits(server, "encode_query")
    np.testing.assert_array_equal(triton.encode_queries([image], ["in red"]), first)
    deadline = time.monotonic() + 300
    while cache_hits(server, "encode_query") == before:
        assert time.monotonic() < deadline, "the metrics never showed a hit"
        time.sleep(0.2)
    for _ in range(2):
        with pytest.raises(InvalidImage):
            triton.encode_queries([b"broken"], ["in red"])


def test_nobody_there_is_unavailable_and_too_slow_is_a_timeout(server) -> None:
    (port,) = free_ports(1)
    for protocol in PROTOCOLS:
        with pytest.raises(ServerUnavailable, match=f"127.0.0.1:{port}"):
            TritonEncoder(f"127.0.0.1:{port}", transport=protocol, retry=IMPATIENT).encode_targets([jpeg()])
    hurried = TritonEncoder(server.grpc_url, timeout_s=0.001, retry=IMPATIENT)
    with pytest.raises(ServerTimeout):
        hurried.encode_targets([jpeg("blue", (900, 700))])


def test_a_server_that_hangs_up_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_hang_up, args=(listening,), daemon=True).start()
        url = f"127.0.0.1:{listening.getsockname()[1]}"
        for protocol in PROTOCOLS:
            with pytest.raises(ServerUnavailable, match=url):
                TritonEncoder(url, transport=protocol, retry=IMPATIENT).encode_targets([jpeg()])


def _hang_up(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the test is over
        while True:
            listening.accept()[0].close()


def test_hundreds_of_bad_requests_leave_the_server_well(server, encoder) -> None:
    triton = TritonEncoder(server.grpc_url)
    bad = [content for content, _ in BAD_IMAGES.values()]

    def ask(place: int) -> None:
        image = bad[place % len(bad)] if place % 2 else jpeg("red", (100 + place, 90))
        with pytest.raises((InvalidImage, InvalidText)):
            triton.encode_queries([image], ["in red" if place % 2 else "x" * 5000])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(400)))
    np.testing.assert_allclose(triton.encode_targets([jpeg()]), encoder.encode_targets([jpeg()]), atol=1e-5)


def test_a_taken_port_and_a_folder_that_is_no_repository_are_refused_before_starting(bundle, tmp_path) -> None:
    free, other = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"can't listen on 127.0.0.1:{port}"):
            TritonServer(bundle.root / "triton" / "python", http_port=port, grpc_port=free, metrics_port=other).start()
    for refused in (free, 65536):
        ports = {"http_port": refused, "grpc_port": free, "metrics_port": other}
        with pytest.raises(ServerError, match=rf"can't listen on 127\.0\.0\.1:{refused}.* choose another host or port"):
            TritonServer(bundle.root / "triton" / "python", **ports).start()
    with pytest.raises(BundleError, match="is not a model repository"):
        TritonServer(tmp_path).start()


def test_text_alone_and_a_restart_in_the_middle(clip_bundle, photos) -> None:
    """A client rides out a restart, and nothing of a stopped server is left."""
    http, grpc, metrics = free_ports(3)

    def new_server() -> TritonServer:
        return TritonServer(
            clip_bundle.root / "triton" / "python", http_port=http, grpc_port=grpc, metrics_port=metrics
        )

    local = LocalEncoder(clip_bundle)
    image = sorted(photos.iterdir())[0]
    patient = TritonEncoder(f"127.0.0.1:{grpc}", retry=RetryPolicy(attempts=300, first_pause_s=0.2, longest_pause_s=2))
    queries = ([None, image, image], ["a red dress", None, "in blue"])
    with new_server() as first:
        np.testing.assert_allclose(patient.encode_queries(*queries), local.encode_queries(*queries), atol=1e-5)
        group = first.pid
    assert wait_until(lambda: is_gone(group), within_s=30), "a server's process is left"
    answers: list[np.ndarray] = []
    waiting = threading.Thread(target=lambda: answers.append(patient.encode_targets([image])))
    waiting.start()
    with new_server():
        waiting.join(timeout=600)
    np.testing.assert_allclose(answers[0], local.encode_targets([image]), atol=1e-5)


def test_two_bundles_on_one_backbone_share_its_encoder(bundle, clip_bundle, encoder, photos, tmp_path) -> None:
    write_shared_repository([bundle, clip_bundle], Flavour.PYTHON, tmp_path / "models")
    models = [path.parent.name for path in (tmp_path / "models").glob("*/config.pbtxt")]
    for shared in ("vision_encoder", "text_encoder", "tokenize"):
        assert sum(name.startswith(f"{shared}_") for name in models) == 1
    assert not any(name.startswith("gallery") for name in models)
    with pytest.raises(ExportError, match="same name"):
        write_shared_repository([bundle, bundle], Flavour.PYTHON, tmp_path / "twice")
    image = sorted(photos.iterdir())[0]
    http, grpc, metrics = free_ports(3)
    with TritonServer(tmp_path / "models", http_port=http, grpc_port=grpc, metrics_port=metrics) as server:
        for local in (encoder, LocalEncoder(clip_bundle)):
            served = TritonEncoder(server.grpc_url, bundle=local.bundle.spec.name)
            assert served.space == local.space
            np.testing.assert_allclose(
                served.encode_queries([image], ["in red"]), local.encode_queries([image], ["in red"]), atol=1e-5
            )
            np.testing.assert_allclose(served.encode_targets([image]), local.encode_targets([image]), atol=1e-5)
        with pytest.raises(ServerError, match=r"'encode_target'.* say which one"):
            TritonEncoder(server.grpc_url).encode_targets([image])


def test_many_vectors_per_image_and_texts_alone_through_the_server(author_bundle, dpo_bundle, photos, tmp_path) -> None:
    sprc = author_bundle("sprc")
    write_shared_repository([sprc, dpo_bundle], Flavour.PYTHON, tmp_path / "models")
    images = sorted(photos.iterdir())[:3]
    http, grpc, metrics = free_ports(3)
    with TritonServer(tmp_path / "models", http_port=http, grpc_port=grpc, metrics_port=metrics) as server:
        served, local = TritonEncoder(server.grpc_url, bundle="sprc"), LocalEncoder(sprc)
        np.testing.assert_allclose(served.encode_targets(images), local.encode_targets(images), atol=1e-5)
        queries = (images, ["a", None, "in red"])
        np.testing.assert_allclose(served.encode_queries(*queries), local.encode_queries(*queries), atol=1e-5)
        texts = TritonEncoder(server.grpc_url, bundle="dpo")
        np.testing.assert_allclose(
            texts.encode_queries([None], ["red"]), LocalEncoder(dpo_bundle).encode_queries([None], ["red"]), atol=1e-5
        )
        with pytest.raises(UnsupportedQuery, match="answers texts alone"):
            texts.encode_queries([images[0]], ["red"])


def test_the_server_cuts_texts_to_what_they_need(server, bundle) -> None:
    runner = TritonRunner(server.grpc_url, ServedNames(bundle.spec, shared=False))
    for count, length in ((2, 16), (14, 16), (15, 32), (60, 77)):
        texts = [b"in blue", b" ".join([b"blue"] * count)]
        found = runner.step(TOKENIZE, {TensorName.TEXT: bytes_array(texts)})[TensorName.TOKEN_IDS]
        whole = Tokenizer(bundle.spec.tokenizer, bundle.root)([text.decode() for text in texts])
        assert found.shape == (2, length)
        np.testing.assert_array_equal(found, whole[:, :length])
        assert not whole[:, length:].any()
