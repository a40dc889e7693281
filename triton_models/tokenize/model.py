"""Triton model: texts to token ids, with the client's own tokenizer. An absent text is the empty one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cirrus_client.errors import InvalidInput
from cirrus_client.tokenizer import Tokenizer, TokenizerSpec, decode_text
from cirrus_client.triton_protocol import error_message


class TritonPythonModel:
    """`image` is not looked at: a step of an ensemble only runs when one of its inputs arrives, and text may not."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        spec = TokenizerSpec.model_validate_json(parameters["tokenizer"]["string_value"])
        self._tokenizer = Tokenizer(spec, Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        token_ids = []
        for position, text in enumerate(_texts(request)):
            try:
                token_ids.append(self._tokenizer([decode_text(text)])[0])
            except InvalidInput as error:
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(error_message(error, position)))
        return pb_utils.InferenceResponse([pb_utils.Tensor("token_ids", np.stack(token_ids))])


def _texts(request: Any) -> list[bytes]:
    text = pb_utils.get_input_tensor_by_name(request, "text")
    if text is not None:
        return list(text.as_numpy().ravel())
    image = pb_utils.get_input_tensor_by_name(request, "image")
    return [b""] * len(image.as_numpy())
