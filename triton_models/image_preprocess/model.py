"""Triton model: encoded images to pixels, with the client's own preprocessing."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cirrus_client.cores import usable_cores
from cirrus_client.errors import InvalidImage, InvalidInput
from cirrus_client.image.preprocess import PreprocessSpec, preprocess
from cirrus_client.image.request import split_images
from cirrus_client.memory import keep_freed_memory
from cirrus_client.triton.wire import error_message


class TritonPythonModel:
    """Every image of every request is decoded on its own, so that a broken one fails its request alone."""

    def initialize(self, args: dict[str, str]) -> None:
        keep_freed_memory()
        parameters = json.loads(args["model_config"])["parameters"]
        self._spec = PreprocessSpec.model_validate_json(parameters["preprocess"]["string_value"])
        # Pillow releases the interpreter's lock; one instance with threads beats several instances (server#5969).
        self._pool = ThreadPoolExecutor(usable_cores())

    def execute(self, requests: list[Any]) -> list[Any]:
        started = [self._start(_images(request)) for request in requests]
        return [_response(of_request) if isinstance(of_request, list) else of_request for of_request in started]

    def finalize(self) -> None:
        self._pool.shutdown()

    def _start(self, images: list[bytes]) -> list[Future[Any]] | Any:
        """Return the pixels of each image to be, or the response to a request that is refused by its headers."""
        try:
            requests = split_images(dict(enumerate(images)), len(images), "image")
        except InvalidImage as error:
            return _refusal(InvalidImage(error.reason), error.position or 0)
        if len(requests) > 1:
            reason = "the images before this one reach the limit of pixels or bytes of a request: send fewer at once"
            return _refusal(InvalidImage(reason), requests[1][0])
        return [self._pool.submit(preprocess, image, self._spec) for image in images]


def _images(request: Any) -> list[bytes]:
    return list(pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel())


def _refusal(error: InvalidInput, position: int) -> Any:
    """Return the response to a caller's mistake: HTTP 400, gRPC INVALID_ARGUMENT."""
    refusal = pb_utils.TritonError(error_message(error, position), pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=refusal)


def _response(futures: list[Future[Any]]) -> Any:
    pixels = []
    for position, future in enumerate(futures):
        try:
            pixels.append(future.result())
        except InvalidInput as error:
            return _refusal(error, position)
        except Exception as error:  # a defect of ours, or no memory: it must not reach the other requests
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"image {position}: {error!r}"))
    done = np.zeros((len(pixels), 1), dtype=np.uint8)
    return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(pixels)), pb_utils.Tensor("done", done)])
