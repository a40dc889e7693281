"""A server that is no Triton, or means harm, gives the clients a ServerError and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cirrus_client.bundle import Similarity, SpaceSpec
from cirrus_client.errors import InvalidImage, ServerError, ServerTimeout, ServerUnavailable, UnsupportedImage
from cirrus_client.names import Transport
from cirrus_client.replay import TritonRunner
from cirrus_client.suggest import TritonSuggester
from cirrus_client.triton.encoder import AsyncTritonEncoder, TritonEncoder
from cirrus_client.triton.requests import RetryPolicy
from cirrus_client.triton.served_names import ServedNames
from cirrus_client.triton.wire import QUERIES_PARAMETER, SPACE_PARAMETER
from tests.conftest import jpeg

pytestmark = pytest.mark.slow

ONCE = RetryPolicy(attempts=1)
SPACE = SpaceSpec.of({"backbone": "hostile"}, dim=64, vectors=1, similarity=Similarity.COSINE)


def config(**changes: Any) -> dict[str, Any]:
    """The configuration by which a server of Cirrus is known."""
    parameters = {
        SPACE_PARAMETER: {"string_value": SPACE.model_dump_json()},
        QUERIES_PARAMETER: {"string_value": '["encode_query"]'},
    }
    return {"name": "encode_target", "max_batch_size": 4, "parameters": parameters} | changes


def answers() -> dict[str, tuple[bytes, bytes, dict[str, str]]]:
    """Return by name: the answer to a request for the configuration, and to an inference, and its headers."""
    good = json.dumps(config()).encode()
    output = {"name": "embedding", "datatype": "FP32", "shape": [1, SPACE.dim]}

    def inference(**changes: Any) -> bytes:
        return json.dumps({"outputs": [output | changes]}).encode()

    binary = {"parameters": {"binary_data_size": 8}}
    return {
        "html": (b"<html>hello</html>", b"", {}),
        "nothing": (b"", b"", {}),
        "not UTF-8": (b'{"name": "\xff\xfe"}', b"", {}),
        "a list": (b"[1, 2]", b"", {}),
        "a number": (b"7", b"", {}),
        "null": (b"null", b"", {}),
        "deep": (b"[" * 200_000, b"", {}),
        "deep in the parameter": (
            json.dumps(config(parameters={SPACE_PARAMETER: {"string_value": "[" * 100_000}})).encode(), b"", {},
        ),
        "no parameters": (json.dumps(config(parameters=None)).encode(), b"", {}),
        "parameters of another kind": (json.dumps(config(parameters={SPACE_PARAMETER: 3})).encode(), b"", {}),
        "no batch": (json.dumps(config(max_batch_size=0)).encode(), b"", {}),
        "an endless batch": (json.dumps(config(max_batch_size="1e400")).encode(), b"", {}),
        "an unknown ensemble": (
            json.dumps(
                config(parameters=config()["parameters"] | {QUERIES_PARAMETER: {"string_value": '["x"]'}})
            ).encode(), b"", {},
        ),
        "inference: html": (good, b"<html>", {}),
        "inference: a list": (good, b"[]", {}),
        "inference: no outputs": (good, b'{"outputs": null}', {}),
        "inference: another shape": (good, inference(shape=[1, 3], data=[1, 2, 3]), {}),
        "inference: negative shape": (good, inference(shape=[-1, -1], data=[1.0]), {}),
        "inference: huge shape": (good, inference(shape=[2**62, 2**62], data=[1.0]), {}),
        "inference: NaN": (good, inference(data=[float("nan")] * SPACE.dim), {}),
        "inference: strings": (good, inference(datatype="BYTES", data=["x"] * SPACE.dim), {}),
        "inference: unknown type": (good, inference(datatype="FP99", data=[1.0]), {}),
        "inference: no data": (good, inference(), {}),
        "inference: short binary": (good, inference(**binary), {"Inference-Header-Content-Length": "60"}),
        "inference: a length that is no number": (good, inference(), {"Inference-Header-Content-Length": "many"}),
        "inference: a huge length": (good, inference(**binary), {"Inference-Header-Content-Length": "9" * 30}),
        "inference: gzip that is none": (good, inference(), {"Content-Encoding": "gzip"}),
        "inference: an error of ours for a place that was not asked": (
            good, b'{"error": "cirrus:InvalidImage@99: no"}', {"status": "400"},
        ),
        "inference: an error that is no text": (good, b'{"error": [1]}', {"status": "400"}),
    }  # fmt: skip


ANSWERS = answers()


@contextlib.contextmanager
def web(described: bytes, inferred: bytes, headers: dict[str, str]) -> Iterator[str]:
    """Serve two answers over HTTP, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(described, {})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(inferred, headers)

        def _answer(self, body: bytes, extra: dict[str, str]) -> None:
            self.send_response(int(extra.get("status", 200)))
            for name, value in extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


async def encode_async(address: str, transport: Transport) -> object:
    async with AsyncTritonEncoder(address, transport=transport, retry=ONCE, timeout_s=5) as encoder:
        return await encoder.encode_targets([jpeg()])


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_over_http_that_no_triton_gives_is_a_server_error(name: str) -> None:
    with web(*ANSWERS[name]) as address:
        encoder = TritonEncoder(address, transport=Transport.HTTP, retry=ONCE, timeout_s=5)
        with encoder, pytest.raises(ServerError) as refused:
            encoder.encode_targets([jpeg()])
        assert refused.value.url in (address, None)
        with pytest.raises(ServerError):
            asyncio.run(encode_async(address, Transport.HTTP))


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [("413", ServerError, "Request Entity Too Large"), ("502", ServerUnavailable, "Bad Gateway")],
)
def test_a_page_of_a_proxy_is_told_in_a_line_by_its_status(status: str, kind: type[ServerError], reason: str) -> None:
    good, _, _ = ANSWERS["inference: html"]
    with web(good, b"<html>\n<center>nginx</center>\n</html>", {"status": status}) as address:
        encoder = TritonEncoder(address, transport=Transport.HTTP, retry=ONCE, timeout_s=5)
        with encoder, pytest.raises(kind) as refused:
            encoder.encode_targets([jpeg()])
        with pytest.raises(kind, match=reason):
            asyncio.run(encode_async(address, Transport.HTTP))
    assert type(refused.value) is kind
    assert f"status {status} {reason}, from a proxy" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_was_unloaded_is_told_so() -> None:
    gone = b"""{"error": "Request for unknown model: 'encode_target' has no available versions"}"""
    good, _, _ = ANSWERS["inference: html"]
    with web(good, gone, {"status": "400"}) as address:
        encoder = TritonEncoder(address, transport=Transport.HTTP, retry=ONCE, timeout_s=5)
        with encoder, pytest.raises(ServerError, match="it is unloaded, or could not be loaded: the server's log says"):
            encoder.encode_targets([jpeg()])


class Hostile(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with a configuration, and with one output for every request."""

    def __init__(self, described: dict[str, Any], output: dict[str, Any], content: bytes) -> None:
        self._described, self._output, self._content = described, output, content

    def ModelConfig(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelConfigResponse()
        answer.config.max_batch_size = self._described["max_batch_size"]
        for key, value in self._described["parameters"].items():
            answer.config.parameters[key].string_value = value["string_value"]
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelInferResponse(raw_output_contents=[self._content])
        answer.outputs.add(**self._output)
        return answer


@contextlib.contextmanager
def over_grpc(answering: Hostile) -> Iterator[str]:
    """Serve over gRPC, and yield the address."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answering, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield address
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("changes", "output", "content"),
    [
        ({"parameters": {}}, {}, b""),
        ({"max_batch_size": -3}, {}, b""),
        ({"parameters": {SPACE_PARAMETER: {"string_value": "[" * 100_000}}}, {}, b""),
        ({"parameters": {SPACE_PARAMETER: {"string_value": "{}"}, QUERIES_PARAMETER: {"string_value": "{"}}}, {}, b""),
        ({}, {"name": "other", "datatype": "FP32", "shape": [1, 64]}, b""),
        ({}, {"name": "embedding", "datatype": "FP32", "shape": [1, 64]}, b"\0" * 7),
        ({}, {"name": "embedding", "datatype": "FP32", "shape": [-1, 1 << 62]}, b"\0" * 256),
        ({}, {"name": "embedding", "datatype": "FP99", "shape": [1, 64]}, b"\0" * 256),
        ({}, {"name": "embedding", "datatype": "BYTES", "shape": [1, 64]}, b"\xff" * 256),
        ({}, {"name": "embedding", "datatype": "FP64", "shape": [1, 64]}, b"\0" * 512),
        ({}, {"name": "embedding", "datatype": "FP32", "shape": [1, 64]}, np.full(64, np.inf, np.float32).tobytes()),
    ],
)
def test_an_answer_over_grpc_that_no_triton_gives_is_a_server_error(changes, output, content) -> None:
    with over_grpc(Hostile(config(**changes), output, content)) as address:
        with TritonEncoder(address, retry=ONCE, timeout_s=5) as encoder, pytest.raises(ServerError):
            encoder.encode_targets([jpeg()])
        with pytest.raises(ServerError):
            asyncio.run(encode_async(address, Transport.GRPC))
        with pytest.raises(ServerError):
            TritonSuggester(address).suggest(jpeg(), jpeg())


def test_over_grpc_too_a_model_without_batches_is_told_as_one_of_others() -> None:
    """gRPC leaves a 0 out, and the server was said to be no Triton."""
    with (
        over_grpc(Hostile(config(max_batch_size=0), {}, b"")) as address,
        TritonEncoder(address, retry=ONCE) as encoder,
        pytest.raises(ServerError, match="was not exported by Cirrus"),
    ):
        encoder.encode_targets([jpeg()])


class OneIsBroken(Hostile):
    """Refuses the first image, and has no time for the others."""

    def ModelInfer(self, request: Any, context: Any) -> Any:
        if b"the first" in request.raw_input_contents[0]:
            time.sleep(0.2)  # the others are in their pauses by then
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "cirrus:InvalidImage@0: image: truncated")
        context.abort(grpc.StatusCode.UNAVAILABLE, "unloading")


def test_the_first_error_ends_all_requests_of_a_call() -> None:
    """The others were tried again after the call had ended, for up to 16 seconds."""
    images = [jpeg() + b"the first", *[jpeg()] * 15]

    async def encode(address: str) -> tuple[BaseException, set[asyncio.Task[Any]]]:
        retry = RetryPolicy(attempts=3, first_pause_s=60, longest_pause_s=60)
        async with AsyncTritonEncoder(address, retry=retry) as encoder:
            with pytest.raises(InvalidImage) as refused:
                await encoder.encode_targets(images)
            return refused.value, asyncio.all_tasks() - {asyncio.current_task()}

    started = time.monotonic()
    with over_grpc(OneIsBroken(config(), {}, b"")) as address:
        error, left = asyncio.run(encode(address))
    assert (error.item, error.position) == ("image", 0)
    assert not left
    assert time.monotonic() - started < 30


def test_a_call_that_is_cancelled_leaves_no_request() -> None:
    async def cancelled(address: str) -> set[asyncio.Task[Any]]:
        retry = RetryPolicy(attempts=3, first_pause_s=60, longest_pause_s=60)
        async with AsyncTritonEncoder(address, retry=retry) as encoder:
            call = asyncio.ensure_future(encoder.encode_targets([jpeg()] * 16))
            await asyncio.sleep(0.5)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return asyncio.all_tasks() - {asyncio.current_task()}

    with over_grpc(OneIsBroken(config(), {}, b"")) as address:
        assert not asyncio.run(cancelled(address))


@pytest.mark.parametrize("transport", list(Transport))
def test_a_replay_waits_for_a_connection_no_longer_than_for_an_answer(transport, tiny_bundle) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = f"127.0.0.1:{full.getsockname()[1]}"
        with contextlib.ExitStack() as waiting:  # the kernel lets further connections wait
            for _ in range(2):
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            runner = TritonRunner(
                address, ServedNames(tiny_bundle.spec, shared=False), transport=transport, timeout_s=1
            )
            started = time.monotonic()
            with pytest.raises((ServerTimeout, ServerUnavailable)):
                runner.check_live()
            assert time.monotonic() - started < 15


def test_a_suggester_names_the_image_that_is_refused_here_or_by_the_server() -> None:
    class Refusing(Hostile):
        def ModelInfer(self, request: Any, context: Any) -> Any:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "cirrus:UnsupportedImage@0: target image: no decoder")

    with over_grpc(Refusing(config(), {}, b"")) as address:
        suggester = TritonSuggester(address)
        with pytest.raises(UnsupportedImage, match=r"^target image: no decoder") as by_server:
            suggester.suggest(jpeg(), jpeg())
        with pytest.raises(InvalidImage, match=r"^target image: an image is the bytes of a file") as here:
            suggester.suggest(jpeg(), 3)  # type: ignore[arg-type]
    assert by_server.value.item == here.value.item == "target"
