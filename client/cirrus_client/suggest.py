"""Suggest an edit text that leads from one image to another.

A suggester is a folder like a bundle: `suggest.json`, `graphs/`, `tokenizer.json` and, for a server, `triton/`.
Decoding is greedy. The language model reads the prompt once, and then one token per step: the keys and values of what
it has read are kept in a cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import tokenizers
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cirrus_client.bundle import FidelityStatus, GraphSpec, Precision, check_listed, check_model_files
from cirrus_client.engines import EngineName, open_engine
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
_WAY_OUT = "export it again with `cirrus export-suggester`, or copy it whole"
_SIDES = ("reference", "target")


class SuggestSpec(Record):
    """The contents of `suggest.json`: the graphs of a suggester, and the token that ends a text.

    READ_IMAGE turns `pixels`, float32 [B, 3, S, S], into `image_tokens`, float32 [B, Q, D].

    NEXT_TOKENS reads `token_ids`, int64 [B, S], behind the `cached_tokens`, int64 [B, 1], that are in the `cache`,
    float32 [B, L, 2, H, N, E]: keys and values of L layers and H heads, with N places for tokens. It gives the `logits`
    of the token that follows, float32 [B, V], and the `added` keys and values, float32 [B, L, 2, H, S, E]. A token id
    of -1 - i stands for token i of `reference_tokens` and `target_tokens`, each float32 [B, Q, D].

    prompt: the token ids of the first call. end_id: the token that ends a text.
    """

    format: Literal[2]
    name: Name
    preprocess: PreprocessSpec
    graphs: dict[Name, GraphSpec]
    prompt: tuple[int, ...] = Field(min_length=1)
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
    """Runs a suggester in this process. Threads may share it."""

    def __init__(self, root: Path, *, engine: str = EngineName.ONNXRUNTIME) -> None:
        """Load a suggester. engine: see `open_engine`.

        Raises BundleError if the folder is not a suggester, is damaged, or failed its gate, and what `open_engine`
        raises.
        """
        self.spec = read_suggester(root)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(root / TOKENIZER))
        self._read, self._next = (
            open_engine(root / self.spec.graphs[graph].file, Precision.FP32, engine=engine)
            for graph in (READ_IMAGE, NEXT_TOKENS)
        )
        self._cache_shape = next(spec.shape for spec in self._next.inputs if spec.name == "cache")

    def suggest(self, reference: ImageInput, target: ImageInput) -> str:
        """Return the edit text. Raises InvalidImage that says which of the two images is bad."""
        return self.texts(self.pixels(reference, target)[None])[0]

    def pixels(self, reference: ImageInput, target: ImageInput) -> NDArray[np.float32]:
        """Return both images preprocessed, float32 [2, 3, S, S]. Raises InvalidImage as `suggest` does."""
        pixels = []
        for side, image in zip(_SIDES, (reference, target), strict=True):
            try:
                pixels.append(preprocess(image_bytes(image), self.spec.preprocess))
            except InvalidImage as error:
                raise InvalidImage(f"{side} image: {error.reason}", item=side) from None
        return np.stack(pixels)

    def texts(self, pixels: NDArray[np.float32]) -> list[str]:
        """Return the edit texts of a batch of pairs. pixels: see `token_ids`."""
        generated = self.token_ids(pixels)
        return [str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in generated]

    def token_ids(self, pixels: NDArray[np.float32]) -> list[list[int]]:
        """Generate the token ids of each pair, without the end token.

        pixels: references and targets, float32 [B, 2, 3, S, S]. A text that has ended is carried along until all have.
        """
        read = self._read({"pixels": pixels.reshape(-1, *pixels.shape[2:])})["image_tokens"]
        reference, target = read.reshape(len(pixels), 2, *read.shape[1:]).swapaxes(0, 1)
        cache = np.zeros((len(pixels), *self._cache_shape), dtype=np.float32)
        given = np.tile(np.array(self.spec.prompt), (len(pixels), 1))
        generated = np.full((len(pixels), self.spec.max_tokens + 1), self.spec.end_id)
        filled = 0
        for place in range(self.spec.max_tokens):
            answer = self._next(
                {
                    "reference_tokens": reference,
                    "target_tokens": target,
                    "token_ids": given,
                    "cached_tokens": np.full((len(pixels), 1), filled),
                    "cache": cache,
                }
            )
            cache[..., filled : filled + given.shape[1], :] = answer["added"]
            filled += given.shape[1]
            generated[:, place] = answer["logits"].argmax(axis=1)
            given = generated[:, place : place + 1]
            if (generated[:, : place + 1] == self.spec.end_id).any(axis=1).all():
                break
        return [ids[: ids.index(self.spec.end_id)] for ids in generated.tolist()]


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
