"""Requests to a Triton server, checks of its answers, and typed errors, for both transports and both clients."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException, responses
from types import ModuleType
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings, check_query, query_pairs
from cirrus_client.encoders.reranker import check_reranked
from cirrus_client.ensemble import EMBEDDING, bytes_array
from cirrus_client.errors import CirrusError, ItemError, ServerError, ServerOverloaded, ServerTimeout, ServerUnavailable
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.image.request import split_images
from cirrus_client.names import EnsembleName, TensorName
from cirrus_client.records import parse_record
from cirrus_client.triton.wire import QUERIES_PARAMETER, SPACE_PARAMETER, parse_error, served_name

_TRANSPORT = (OSError, EOFError, HTTPException, aiohttp.ClientError, asyncio.TimeoutError)
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error)
FAILURES = (InferenceServerException, ServerError, *_TRANSPORT, *_NONSENSE)
"""What the four tritonclient clients raise when a request fails, also on an answer that no Triton gives."""

_OVERLOADED = "exceeds maximum queue size"
_BATCH_REFUSED = "batch-size must be"
_UNAVAILABLE = (
    *("unavailable", "connection refused", "failed to connect", "connection reset", "not ready", "unloading"),
    "bad gateway",
)
_PORTS = "check host and port: Triton's gRPC port is 8001 unless changed, its HTTP port 8000 (--transport http)"
_MODEL_HINTS = {
    "has no available versions": "; it is unloaded, or could not be loaded: the server's log says why",
    "unknown model": "; where it serves several bundles, say which one (--name)",
}
_TIMED_OUT = ("deadline exceeded", "timed out", "timeout")
_OUTPUTS = {EnsembleName.ENCODE_CONDITION: TensorName.CONDITION, EnsembleName.SCORE_CANDIDATE: TensorName.SCORE}
"""The results of ensembles that make no embedding."""


@dataclass(frozen=True)
class RetryPolicy:
    """When an unavailable server is tried again. Pauses double after each attempt, with a jitter of 25%.

    The defaults wait about 16 s in total, which is enough for a server of small models to restart.
    """

    attempts: int = 7
    first_pause_s: float = 0.25
    longest_pause_s: float = 10.0

    def pauses(self) -> Iterator[float | None]:
        """Yield for each attempt the pause after its failure, in seconds. Yield None for the last attempt."""
        for attempt in range(self.attempts - 1):
            pause_s = min(self.first_pause_s * 2**attempt, self.longest_pause_s)
            yield pause_s * random.uniform(0.75, 1.25)
        yield None


DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True)
class ServedModel:
    """The bundle that a server serves, as its model configuration describes it."""

    space: SpaceSpec
    max_batch: int
    ensembles: frozenset[EnsembleName]
    bundle: str | None


@dataclass(frozen=True)
class Request:
    """One inference request.

    model: the server's name of the ensemble. rows: positions in the call of the items in this request. arrays: BYTES
    inputs by name. item: "query", "image" or "candidate", for errors. condition: of the query whose candidates the
    items are, float32 [...], or None.
    """

    ensemble: EnsembleName
    model: str
    rows: list[int]
    arrays: Mapping[str, list[bytes]]
    item: str
    condition: NDArray[np.float32] | None = None

    @property
    def output(self) -> str:
        """The name of the result."""
        return _OUTPUTS.get(self.ensemble, EMBEDDING)

    def inputs(self, module: ModuleType) -> list[Any]:
        """Return the inputs as objects of tritonclient.grpc or tritonclient.http."""
        built = []
        for name, items in self.arrays.items():
            tensor = module.InferInput(name, [len(items), 1], "BYTES")
            tensor.set_data_from_numpy(bytes_array(items).reshape(-1, 1))
            built.append(tensor)
        if self.condition is not None:
            shape = (len(self.rows), *self.condition.shape)
            tensor = module.InferInput(TensorName.CONDITION.value, list(shape), "FP32")
            tensor.set_data_from_numpy(np.ascontiguousarray(np.broadcast_to(self.condition, shape)))
            built.append(tensor)
        return built


def check_address(url: str) -> None:
    """Raise ServerError unless a server's address is host:port."""
    host, _, port = url.rpartition(":")
    if "://" in url or "/" in url:
        bare = url.partition("://")[2].partition("/")[0] or url.partition("/")[0]
        without = "; Triton is asked without TLS" if url.startswith(("https:", "grpcs:")) else ""
        wanted = f"give host:port alone, like {bare or 'localhost:8001'}"
        raise ServerError(f"server {url}: {wanted}{without}; {_PORTS}", url=url)
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ServerError(f"server {url}: expected host:port, like localhost:8001; {_PORTS}", url=url)


def query_requests(
    images: Sequence[ImageInput | None], texts: Sequence[str | None], served: ServedModel
) -> list[Request]:
    """Split queries into requests with and without images, within the server's maximum batch and `split_images`."""
    pairs = list(query_pairs(images, texts))
    for position, (image, text) in enumerate(pairs):
        check_query(image, text, position=position, ensembles=served.ensembles)
    encoded = {row: _encoded(image, row) for row, (image, _) in enumerate(pairs) if image is not None}
    text_bytes = [(text or "").encode("utf-8", "surrogatepass") for text in texts]
    with_image = [
        Request(
            EnsembleName.ENCODE_QUERY,
            served_name(EnsembleName.ENCODE_QUERY, served.bundle),
            rows,
            {"image": [encoded[row] for row in rows], "text": [text_bytes[row] for row in rows]},
            "query",
        )
        for rows in split_images(encoded, served.max_batch, "query")
    ]
    without_image = [
        Request(
            EnsembleName.ENCODE_TEXT_QUERY,
            served_name(EnsembleName.ENCODE_TEXT_QUERY, served.bundle),
            rows,
            {"text": [text_bytes[row] for row in rows]},
            "query",
        )
        for rows in _split([row for row in range(len(pairs)) if row not in encoded], served.max_batch)
    ]
    return with_image + without_image


def target_requests(images: Sequence[bytes], served: ServedModel) -> list[Request]:
    """Split gallery images into requests within the server's maximum batch and the limits of `split_images`."""
    return [
        Request(
            EnsembleName.ENCODE_TARGET,
            served_name(EnsembleName.ENCODE_TARGET, served.bundle),
            rows,
            {"image": [images[row] for row in rows]},
            "image",
        )
        for rows in split_images(dict(enumerate(images)), served.max_batch, "image")
    ]


def condition_request(image: ImageInput | None, text: str | None, served: ServedModel) -> Request:
    """Return the request for what a reranker keeps of a query. Raises what `Reranker.scores` does for a query."""
    check_reranked(image, served.ensembles)
    (composed,) = query_requests([image], [text], served)
    name = EnsembleName.ENCODE_CONDITION
    return replace(composed, ensemble=name, model=served_name(name, served.bundle))


def score_requests(
    condition: NDArray[np.float32], text: str | None, candidates: Sequence[bytes], served: ServedModel
) -> list[Request]:
    """Split a query's candidates into requests within the server's maximum batch and the limits of `split_images`."""
    text_bytes = (text or "").encode("utf-8", "surrogatepass")
    return [
        Request(
            EnsembleName.SCORE_CANDIDATE,
            served_name(EnsembleName.SCORE_CANDIDATE, served.bundle),
            rows,
            {"image": [candidates[row] for row in rows], "text": [text_bytes] * len(rows)},
            "candidate",
            condition,
        )
        for rows in split_images(dict(enumerate(candidates)), served.max_batch, "candidate")
    ]


def read_config(answer: Any, url: str, bundle: str | None) -> ServedModel:
    """Read the configuration of an ensemble. Raises ServerError if Cirrus did not export it."""
    try:
        config = answer.get("config", answer)
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        max_batch = int(config.get("max_batch_size", 0))  # gRPC leaves a 0 out
        ensembles = frozenset(EnsembleName(name) for name in json.loads(parameters.get(QUERIES_PARAMETER, "[]")))
    except _NONSENSE as error:
        raise typed_error(error, url, None) from None
    if SPACE_PARAMETER not in parameters or max_batch < 1:
        raise ServerError(f"the server at {url} has an 'encode_target' that was not exported by Cirrus", url=url)
    return ServedModel(
        space=parse_record(
            parameters[SPACE_PARAMETER],
            SpaceSpec,
            source=f"the server at {url}, its space",
            raises=ServerError,
            way_out="serve a bundle of this version of Cirrus",
        ),
        max_batch=max_batch,
        ensembles=ensembles,
        bundle=bundle,
    )


def check_answer(answer: Any, request: Request, space: SpaceSpec) -> Embeddings:
    """Return the result in an answer. Raises ServerError if its shape is wrong or values are not finite.

    The shape of a condition is known to the server alone.
    """
    result: Embeddings | None = answer.as_numpy(request.output)
    shapes = {EnsembleName.ENCODE_TARGET: space.item_shape, EnsembleName.SCORE_CANDIDATE: (1,)}
    shape = shapes.get(request.ensemble, (space.dim,))
    if result is not None and request.ensemble is EnsembleName.ENCODE_CONDITION:
        shape = result.shape[1:]
    expected = (len(request.rows), *shape)
    is_right = result is not None and result.shape == expected and result.dtype == np.float32
    if result is None or not is_right or not np.isfinite(result).all():
        found = None if result is None else result.shape
        raise ServerError(f"{request.ensemble} answered with shape {found} or values not finite, expected {expected}")
    return result


def typed_error(error: BaseException, url: str, request: Request | None) -> CirrusError:
    """Return the typed error for a failed request.

    That is InvalidInput with its position in the call, ServerTimeout, ServerOverloaded, ServerUnavailable, or
    ServerError.
    """
    if isinstance(error, ServerError):
        return error
    message = error_text(error)
    status = str(error.status() or "") if isinstance(error, InferenceServerException) else ""
    invalid = parse_error(message)
    if invalid is not None and request is not None and invalid[1] < len(request.rows):
        kind, position, reason = invalid
        return kind(reason, item=request.item, position=request.rows[position])
    text = f"{status} {message}".lower()
    if _OVERLOADED in text:
        return ServerOverloaded(
            f"the server at {url} is overloaded: {message}; send fewer requests at a time, or serve from more machines",
            url=url,
        )
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)) or any(mark in text for mark in _TIMED_OUT):
        return ServerTimeout(f"the server at {url} did not answer in time: {message}", url=url)
    if isinstance(error, _NONSENSE):
        return ServerError(f"the server at {url} does not answer as Triton does; {_PORTS}", url=url)
    if isinstance(error, _TRANSPORT) or any(mark in text for mark in _UNAVAILABLE):
        return ServerUnavailable(f"the server at {url} is not available: {message}; {_PORTS}", url=url)
    hint = next((hint for mark, hint in _MODEL_HINTS.items() if mark in text), "")
    return ServerError(f"the server at {url}: {message}{hint}", url=url)


def is_of_batch(error: ServerError) -> bool:
    """Return whether a server refused a request for its batch, as one with a smaller maximum than before does."""
    return _BATCH_REFUSED in str(error)


def error_text(error: BaseException) -> str:
    """Return the message of a failed request, in one line also where a proxy answered with a page."""
    if not isinstance(error, InferenceServerException):
        return str(error) or type(error).__name__
    status = str(error.status())
    if status.isdigit() and error.debug_details() is not None:  # over HTTP, tritonclient keeps what is no JSON there
        reason = responses.get(int(status), "")
        return f"status {status} {reason}, from a proxy before it or a server that is no Triton"
    return str(error.message()) or type(error).__name__


def _encoded(image: ImageInput, row: int) -> bytes:
    try:
        return image_bytes(image)
    except ItemError as error:
        raise error.at("query", row) from None


def _split(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
