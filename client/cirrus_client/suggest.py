"""Suggest an edit text that leads from one image to another.

A suggester is a folder like a bundle: `suggest.json`, `graphs/`, `tokenizer.json` and, for a server, `triton/`.
Decoding is greedy. The language model reads the prompt once, and then one token per step: the keys and values of what
it has read are kept in a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self

import numpy as np
import tokenizers
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cirrus_client.bundle import FidelityStatus, GraphSpec, Precision, check_listed, check_model_files
from cirrus_client.engines import Engine, EngineName, candidates, open_engine
from cirrus_client.ensemble import bytes_array
from cirrus_client.errors import BundleError, CirrusError, InvalidImage
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.image.preprocess import PreprocessSpec, preprocess
from cirrus_client.names import FolderRecord
from cirrus_client.records import GrownRecord, Name, RelativePath, read_record
from cirrus_client.triton.channel import open_channel
from cirrus_client.triton.requests import FAILURES, check_address, error_text, typed_error
from cirrus_client.triton.wire import parse_error

CONTRACT = FolderRecord.SUGGESTER
TOKENIZER = "tokenizer.json"
READ_IMAGE, NEXT_TOKENS = "read_image", "next_tokens"
MODEL = "suggest"
WAY_OUT = "export it again with `cirrus export-suggester`, or copy it whole"
_SIDES = ("reference", "target")
_IMAGE = " image: "


class SuggestSpec(GrownRecord):
    """The contents of `suggest.json`: the graphs of a suggester, and the token that ends a text.

    READ_IMAGE turns `pixels`, float32 [B, 3, S, S], into `image_tokens`, float32 [B, Q, D].

    NEXT_TOKENS reads `token_ids`, int64 [B, S], behind the `cached_tokens`, int64 [B, 1], that are in the `cache`,
    float32 [B, L, 2, H, N, E]: keys and values of L layers and H heads, with N places for tokens. It gives the `logits`
    of the token that follows, float32 [B, V], and the `added` keys and values, float32 [B, L, 2, H, S, E]. A token id
    of -1 - i stands for token i of `reference_tokens` and `target_tokens`, each float32 [B, Q, D].

    prompt: the token ids of the first call. end_id: the token that ends a text. precision: of the arithmetic inside the
    graphs; their inputs and outputs are float32.
    """

    later_fields: ClassVar[frozenset[str]] = frozenset({"precision"})

    format: Literal[2]
    name: Name
    preprocess: PreprocessSpec
    graphs: dict[Name, GraphSpec]
    prompt: tuple[int, ...] = Field(min_length=1)
    end_id: int
    max_tokens: int = Field(gt=0)
    files: dict[RelativePath, str]
    fidelity: FidelityStatus
    precision: Precision = Precision.FP32

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

    def __init__(self, root: Path, *, engine: str | None = None) -> None:
        """Load a suggester. engine: see `open_engine`; None takes ONNX Runtime where it runs the suggester's precision.

        Engines are not compared for speed, as those of bundles are: the language model would be in memory twice.
        Raises BundleError if the folder is not a suggester, is damaged, or failed its gate, and what `open_engine`
        raises.
        """
        self.root = root
        self.spec = read_suggester(root)
        if engine is None and EngineName.ONNXRUNTIME in candidates(self.spec.precision):
            engine = EngineName.ONNXRUNTIME
        self._tokenizer = tokenizers.Tokenizer.from_file(str(root / TOKENIZER))
        self._read, self._next = (
            open_engine(root / self.spec.graphs[graph].file, self.spec.precision, engine=engine)
            for graph in (READ_IMAGE, NEXT_TOKENS)
        )

    @property
    def device(self) -> str:
        """The engine that runs the graphs, see `Engine`."""
        return self._next.device

    def suggest(self, reference: ImageInput, target: ImageInput) -> str:
        """Return the edit text. Raises InvalidImage that says which of the two images is bad."""
        return self.texts(self.pixels(reference, target)[None])[0]

    def pixels(self, reference: ImageInput, target: ImageInput) -> NDArray[np.float32]:
        """Return both images preprocessed, float32 [2, 3, S, S]. Raises InvalidImage as `suggest` does."""
        return pair_pixels(reference, target, self.spec.preprocess)

    def texts(self, pixels: NDArray[np.float32]) -> list[str]:
        """Return the edit texts of a batch of pairs. pixels: see `token_ids`."""
        return [self.decode(token_ids) for token_ids in self.token_ids(pixels)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True)).strip()

    def token_ids(self, pixels: NDArray[np.float32]) -> list[list[int]]:
        """Generate the token ids of each pair, without the end token.

        pixels: references and targets, float32 [B, 2, 3, S, S]. A text that has ended is carried along until all have.
        """
        reading = self.reading(self.image_tokens(pixels))
        given = np.tile(np.array(self.spec.prompt), (len(pixels), 1))
        generated = np.full((len(pixels), self.spec.max_tokens + 1), self.spec.end_id)
        for place in range(self.spec.max_tokens):
            generated[:, place] = reading.logits(given).argmax(axis=1)
            given = generated[:, place : place + 1]
            if (generated[:, : place + 1] == self.spec.end_id).any(axis=1).all():
                break
        return [ids[: ids.index(self.spec.end_id)] for ids in generated.tolist()]

    def image_tokens(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the tokens of both images of each pair, float32 [B, 2, Q, D]. pixels: see `token_ids`."""
        read = self._read({"pixels": pixels.reshape(-1, *pixels.shape[2:])})["image_tokens"]
        return read.reshape(len(pixels), 2, *read.shape[1:])

    def reading(self, image_tokens: NDArray[np.float32]) -> Reading:
        """Begin to read. image_tokens: float32 [B, 2, Q, D]."""
        return Reading(self._next, image_tokens)


class Reading:
    """What the language model has read so far of a batch of pairs. It belongs to one thread."""

    def __init__(self, engine: Engine, image_tokens: NDArray[np.float32]) -> None:
        """Read nothing yet. engine: NEXT_TOKENS. image_tokens: float32 [B, 2, Q, D]."""
        self._engine = engine
        self._reference, self._target = image_tokens.swapaxes(0, 1)
        shape = next(spec.shape for spec in engine.inputs if spec.name == "cache")
        self._cache = np.zeros((len(image_tokens), *shape), dtype=np.float32)
        self._filled = 0

    def logits(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read token_ids, int64 [B, S], behind those read before: the logits of the token that follows, [B, V]."""
        answer = self._engine(
            {
                "reference_tokens": self._reference,
                "target_tokens": self._target,
                "token_ids": token_ids,
                "cached_tokens": np.full((len(token_ids), 1), self._filled),
                "cache": self._cache,
            }
        )
        self._cache[..., self._filled : self._filled + token_ids.shape[1], :] = answer["added"]
        self._filled += token_ids.shape[1]
        logits: NDArray[np.float32] = answer["logits"]
        return logits


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
        inputs = []
        for side, image in zip(_SIDES, (reference, target), strict=True):
            tensor = grpcclient.InferInput(side, [1, 1], "BYTES")
            with _naming(side):
                tensor.set_data_from_numpy(bytes_array([image_bytes(image)]).reshape(1, 1))
            inputs.append(tensor)
        client = open_channel(self.url)
        try:
            answer = client.infer(MODEL, inputs, client_timeout=self._timeout_s)
            return str(answer.as_numpy("text")[0, 0].decode())
        except FAILURES as error:
            raise _served_error(error, self.url) from None
        finally:
            client.close()


def pair_pixels(reference: ImageInput, target: ImageInput, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Return two images preprocessed, float32 [2, 3, S, S]. Raises InvalidImage that says which of them is bad."""
    pixels = []
    for side, image in zip(_SIDES, (reference, target), strict=True):
        with _naming(side):
            pixels.append(preprocess(image_bytes(image), spec))
    return np.stack(pixels)


@contextmanager
def _naming(side: str) -> Iterator[None]:
    """Raise InvalidImage, or what derives from it, with the side of the image."""
    try:
        yield
    except InvalidImage as error:
        raise type(error)(f"{side}{_IMAGE}{error.reason}", item=side) from None


def _served_error(error: BaseException, url: str) -> CirrusError:
    """Return the typed error for a request that failed, with the side of an image that the server refused."""
    invalid = parse_error(error_text(error))
    if invalid is None:
        return typed_error(error, url, None)
    kind, _, reason = invalid
    return kind(reason, item=next((side for side in _SIDES if reason.startswith(side + _IMAGE)), None))


def read_suggester(root: Path) -> SuggestSpec:
    """Read a suggester's contract and check its files. Raises BundleError as `LocalSuggester` does."""
    spec = read_record(
        root / CONTRACT,
        SuggestSpec,
        raises=BundleError,
        way_out=WAY_OUT,
    )
    check_model_files(root, spec.graphs, spec.files, what="suggester")
    if not spec.fidelity.passed:
        raise BundleError(f"suggester {root} failed its fidelity gate: {'; '.join(spec.fidelity.failures)}")
    return spec
