"""What Triton answers to a caller's mistake, as clients without our code see it: status code and message."""

from __future__ import annotations

import json
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from cirrus_client.triton.server import TritonServer
from tests.conftest import BAD_IMAGES, jpeg

LONG = b"plaid " * 10_000
NOT_UTF8 = b"\xff\xfe in red"
CASES = {
    **{f"image: {name}": ([content], [b"in red"], "InvalidImage@0") for name, (content, _) in BAD_IMAGES.items()},
    "image: the second of two": ([jpeg(), b"broken"], [b"in red", b"in red"], "InvalidImage@1"),
    "text: too long": ([jpeg()], [LONG], "InvalidText@0"),
    "text: not UTF-8": ([jpeg()], [NOT_UTF8], "InvalidText@0"),
}


def bytes_tensor(name: str, items: list[bytes]) -> grpcclient.InferInput:
    tensor = grpcclient.InferInput(name, [len(items), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(items, dtype=np.object_).reshape(-1, 1))
    return tensor


def over_grpc(server: TritonServer, model: str, inputs: list[grpcclient.InferInput]) -> tuple[str, str]:
    """Return the status code and the message of a request that fails."""
    client = grpcclient.InferenceServerClient(server.grpc_url)
    try:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, inputs)
    finally:
        client.close()
    return caught.value.status(), caught.value.message()


def over_http(server: TritonServer, images: list[bytes], texts: list[bytes]) -> tuple[int, str]:
    """Return the status code and the message of a request with the tensors as binary data behind its JSON."""
    parts = {"image": images, "text": texts}
    bodies = {name: b"".join(struct.pack("<I", len(one)) + one for one in items) for name, items in parts.items()}
    inputs = [
        {
            "name": name,
            "shape": [len(items), 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(bodies[name])},
        }
        for name, items in parts.items()
    ]
    header = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/encode_query/infer",
        data=header + b"".join(bodies.values()),
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    return caught.value.code, json.loads(caught.value.read())["error"]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_the_callers_mistake_over_grpc_and_http(server, name) -> None:
    images, texts, mark = CASES[name]
    grpc_status, grpc_message = over_grpc(
        server, "encode_query", [bytes_tensor("image", images), bytes_tensor("text", texts)]
    )
    http_status, http_message = over_http(server, images, texts)
    assert grpc_status == "StatusCode.INVALID_ARGUMENT"
    assert http_status == 400
    assert f"cirrus:{mark}: " in grpc_message
    assert http_message == grpc_message


def test_an_ensemble_without_its_image_is_the_callers_mistake(server) -> None:
    status, message = over_grpc(server, "encode_query", [bytes_tensor("text", [b"in red"])])
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "image" in message or "expected" in message


@pytest.mark.parametrize(
    "pixels", [np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 3, 64), np.float32)], ids=["size", "rank"]
)
def test_a_graph_asked_with_another_shape_is_the_callers_mistake(server, pixels) -> None:
    tensor = grpcclient.InferInput("pixels", pixels.shape, "FP32")
    tensor.set_data_from_numpy(pixels)
    status, message = over_grpc(server, "gallery", [tensor])
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "pixels" in message


def test_a_raw_image_as_the_body_is_enough(server, encoder) -> None:
    """The curl line of docs/deploy-on-triton.md."""
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/encode_target/infer",
        data=jpeg("teal"),
        headers={"Inference-Header-Content-Length": "0"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        length = int(answer.headers.get("Inference-Header-Content-Length", 0))
        body = answer.read()
    header = json.loads(body[:length] if length else body)
    output = header["outputs"][0]
    values = np.frombuffer(body[length:], np.float32) if length else np.array(output["data"], np.float32)
    np.testing.assert_allclose(values, encoder.encode_targets([jpeg("teal")])[0], atol=1e-5)
