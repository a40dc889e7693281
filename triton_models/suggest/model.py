"""Triton model: two images to the edit text between them, with the client's own suggester."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cirrus_client.errors import EngineError, InvalidInput
from cirrus_client.suggest import CONTRACT, LocalSuggester
from cirrus_client.triton.wire import error_message


class TritonPythonModel:
    """The pairs of all requests that waited are read as one batch; where that fails, each request is read alone."""

    def initialize(self, args: dict[str, str]) -> None:
        contract = Path(args["model_repository"]) / args["model_version"] / CONTRACT
        self._suggester = LocalSuggester(contract.resolve().parent)  # where the checked files are

    def execute(self, requests: list[Any]) -> list[Any]:
        asked = [self._pixels(request) for request in requests]
        readable = [pixels for pixels in asked if isinstance(pixels, np.ndarray)]
        try:
            texts = iter(self._suggester.texts(np.concatenate(readable)) if readable else [])
        except EngineError as error:
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))]
        return [
            _answer([next(texts) for _ in pixels])
            if isinstance(pixels, np.ndarray)
            else pb_utils.InferenceResponse(error=pixels)
            for pixels in asked
        ]

    def _pixels(self, request: Any) -> Any:
        """Return the pixels of a request's pairs, or the TritonError that answers it."""
        sides = [
            pb_utils.get_input_tensor_by_name(request, side).as_numpy().ravel() for side in ("reference", "target")
        ]
        pixels = []
        for position, (reference, target) in enumerate(zip(*sides, strict=True)):
            try:
                pixels.append(self._suggester.pixels(reference, target))
            except InvalidInput as error:  # the caller's mistake: HTTP 400, gRPC INVALID_ARGUMENT
                return pb_utils.TritonError(error_message(error, position), pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # a defect of ours, or no memory: it must not reach the other requests
                return pb_utils.TritonError(f"pair {position}: {error!r}")
        return np.stack(pixels)


def _answer(texts: list[str]) -> Any:
    column = np.array([text.encode() for text in texts], dtype=np.object_).reshape(-1, 1)
    return pb_utils.InferenceResponse([pb_utils.Tensor("text", column)])
