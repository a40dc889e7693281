"""Suggest an edit text that leads from one image to another.

A suggester is a folder like a bundle: `suggest.json`, `graphs/`, `tokenizer.json` and, for a server, `triton/`.
Decoding is greedy, without a key-value cache, because an edit is a short text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

import numpy as np
import tokenizers
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cirrus_client.bundle import FidelityStatus, GraphSpec, Precision, check_listed, check_model_files
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine
from cirrus_client.ensemble import bytes_array
from cirrus_client.errors import BundleError, InvalidImage
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.image.preprocess import PreprocessSpec, preprocess
from cirrus_client.records import Name, Record, RelativePath, read_record
from cirrus_client.triton.channel import open_channel
from cirrus_client.triton.requests import FAILURES, check_address, error_text, typed_error
from cirrus_client.triton.wire import parse_error

CONTRACT = "suggest.json"
TOKENIZER = "tokenizer.json"
READ_IMAGE, NEXT_TOKENS = "read_image", "next_tokens"
MODEL = "suggest"
_WAY_OUT = "export it again or copy it whole"
_SIDES = ("reference", "target")


class SuggestSpec(Record):
    """The contents of `suggest.json`: the graphs of a suggester, and the token that ends a text.

    READ_IMAGE turns `pixels`, float32 [B, 3, S, S], into `image_tokens`, float32 [B, Q, D]. NEXT_TOKENS turns
    `reference_tokens`, `target_tokens` and `token_ids`, int64 [B, T], into `following_ids`, int64 [B, T]: entry t is
    the token that follows the first t tokens.
    """

    name: Name
    preprocess: PreprocessSpec
    graphs: dict[Name, GraphSpec]
    end_id: int
    max_tokens: int = Field(gt=0)
    files: dict[RelativePath, str]
    fidelity: FidelityStatus

    @model_validator(mode="after")
    def _lists_what_it_names(self) -> Self:
        check_listed(self.graphs, TOKENIZER, self.files)
        return self


class Suggester(Protocol):
    """What writes the edit text of one pair: `LocalSuggester` or `TritonSuggester`."""

    def suggest(self, reference: ImageInput, target: ImageInput) -> str:
        """Return the edit text. Raises InvalidImage that says which of the two images is bad."""


class LocalSuggester:
    """Runs a suggester in this process on ONNX Runtime. Threads may share it."""

    def __init__(self, root: Path) -> None:
        """Load a suggester. Raises BundleError if the folder is not a suggester, is damaged, or failed its gate."""
        self.spec = read_suggester(root)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(root / TOKENIZER))
        self._read = OnnxRuntimeEngine(root / self.spec.graphs[READ_IMAGE].file, Precision.FP32)
        self._next = OnnxRuntimeEngine(root / self.spec.graphs[NEXT_TOKENS].file, Precision.FP32)

    def suggest(self, reference: ImageInput, target: ImageInput) -> str:
        """Return the edit text. Raises InvalidImage that says which of the two images is bad."""
        pixels = []
        for side, image in zip(_SIDES, (reference, target), strict=True):
            try:
                pixels.append(preprocess(image_bytes(image), self.spec.preprocess))
            except InvalidImage as error:
                raise InvalidImage(f"{side} image: {error.reason}", item=side) from None
        return self.text(self.token_ids(np.stack(pixels)))

    def token_ids(self, pixels: NDArray[np.float32]) -> list[int]:
        """Generate token ids, without the end token. pixels: reference and target, float32 [2, 3, S, S]."""
        reference, target = np.split(self._read({"pixels": pixels})["image_tokens"], 2)
        token_ids = np.full((1, self.spec.max_tokens), self.spec.end_id, dtype=np.int64)
        for place in range(self.spec.max_tokens):
            given = {"reference_tokens": reference, "target_tokens": target, "token_ids": token_ids}
            following = int(self._next(given)["following_ids"][0, place])
            if following == self.spec.end_id:
                return [int(token) for token in token_ids[0, :place]]
            token_ids[0, place] = following
        return [int(token) for token in token_ids[0]]

    def text(self, token_ids: list[int]) -> str:
        """Return generated token ids as text."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True)).strip()


class TritonSuggester:
    """Calls the model `suggest` of a Triton server over gRPC. Threads may share it: each call opens a connection."""

    def __init__(self, url: str, *, timeout_s: float = 120.0) -> None:
        """Name the server. Nothing is contacted yet. url: host:port. timeout_s: time limit of one call.

        Raises ServerError if url is not host:port.
        """
        check_address(url)
        self.url = url
        self._timeout_s = timeout_s

    def suggest(self, reference: ImageInput, target: ImageInput) -> str:
        """Return the edit text. Raises InvalidImage, ServerUnavailable, ServerTimeout or ServerError."""
        client = open_channel(self.url)
        inputs = []
        for side, image in zip(_SIDES, (reference, target), strict=True):
            tensor = grpcclient.InferInput(side, [1, 1], "BYTES")
            tensor.set_data_from_numpy(bytes_array([image_bytes(image)]).reshape(1, 1))
            inputs.append(tensor)
        try:
            answer = client.infer(MODEL, inputs, client_timeout=self._timeout_s)
            return str(answer.as_numpy("text")[0, 0].decode())
        except FAILURES as error:
            invalid = parse_error(error_text(error))
            raise (invalid[0](invalid[2]) if invalid else typed_error(error, self.url, None)) from None
        finally:
            client.close()


def read_suggester(root: Path) -> SuggestSpec:
    """Read a suggester's contract and check its files. Raises BundleError as `LocalSuggester` does."""
    spec = read_record(
        root / CONTRACT,
        SuggestSpec,
        raises=BundleError,
        missing=f"{root} is not a suggester: it has no {CONTRACT}; make one with `cirrus export-suggester`",
        way_out=_WAY_OUT,
    )
    check_model_files(root, spec.graphs, spec.files, what="suggester")
    if not spec.fidelity.passed:
        raise BundleError(f"suggester {root} failed its fidelity gate: {'; '.join(spec.fidelity.failures)}")
    return spec
