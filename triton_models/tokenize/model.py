"""Triton model: texts to token ids, with the client's own tokenizer. An absent text is the empty one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cirrus_client.errors import InvalidInput
from cirrus_client.tokenizer import Tokenizer, TokenizerSpec, decode_text
from cirrus_client.triton.wire import error_message


class TritonPythonModel:
    """`after` is the previous step's `done`; it also says how many texts are absent."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._spec = spec = TokenizerSpec.model_validate_json(parameters["tokenizer"]["string_value"])
        self._tokenizer = Tokenizer(spec, Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, all with token ids of one length: Triton batches only what has one shape."""
        tokenized = [self._tokenize(request) for request in requests]
        whole = [token_ids for token_ids in tokenized if isinstance(token_ids, np.ndarray)]
        length = self._spec.cut(np.concatenate(whole)).shape[1] if whole else 0
        return [
            _response(token_ids[:, :length]) if isinstance(token_ids, np.ndarray) else token_ids
            for token_ids in tokenized
        ]

    def _tokenize(self, request: Any) -> Any:
        """Return the full token ids, int64 [B, T], or the response that refuses a text."""
        token_ids = []
        for position, text in enumerate(_texts(request)):
            try:
                token_ids.append(self._tokenizer([decode_text(text)])[0])
            except InvalidInput as error:  # the caller's mistake: HTTP 400, gRPC INVALID_ARGUMENT
                refusal = pb_utils.TritonError(error_message(error, position), pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=refusal)
            except Exception as error:  # a defect of ours must not reach the other requests
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"text {position}: {error!r}"))
        return np.stack(token_ids)


def _response(token_ids: Any) -> Any:
    done = np.zeros((len(token_ids), 1), dtype=np.uint8)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("token_ids", np.ascontiguousarray(token_ids)), pb_utils.Tensor("done", done)]
    )


def _texts(request: Any) -> list[bytes]:
    text = pb_utils.get_input_tensor_by_name(request, "text")
    if text is not None:
        return list(text.as_numpy().ravel())
    return [b""] * len(pb_utils.get_input_tensor_by_name(request, "after").as_numpy())
