"""Replay a bundle's canary: every stage of every ensemble, in this process or on a Triton server.

Every stage gets the original's own input, so that the stage at fault is found, and not the ones behind it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import np_to_triton_dtype

from cirrus_client.bundle import BundleSpec
from cirrus_client.canary import Canary
from cirrus_client.choices import member
from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.ensemble import IMAGE_PREPROCESS, TOKENIZE, Arrays, bytes_array
from cirrus_client.errors import CirrusError, NotReady
from cirrus_client.image.preprocess import preprocess
from cirrus_client.names import EnsembleName, TensorName, Transport
from cirrus_client.tokenizer import Tokenizer
from cirrus_client.triton.channel import open_channel
from cirrus_client.triton.requests import FAILURES, check_address, typed_error
from cirrus_client.triton.served_names import ServedNames


@dataclass(frozen=True)
class StageCheck:
    """One stage. stage: a model or an ensemble. cosine: the smallest; NaN if it did not answer. problem: why not."""

    stage: str
    cosine: float
    problem: str | None = None


@dataclass(frozen=True)
class CanaryResult:
    """What a replay found, in the order in which the stages run."""

    stages: tuple[StageCheck, ...]
    cosine_min: float

    @property
    def lowest(self) -> float:
        """The smallest cosine of all stages; NaN if one did not answer."""
        return float(np.min([check.cosine for check in self.stages]))

    def check(self, where: str) -> None:
        """Raise NotReady, which names the first stage at fault, if one missed. where: what was held to the canary."""
        for stage in self.stages:
            if not stage.cosine >= self.cosine_min:  # a NaN misses
                found = stage.problem or f"its cosine to the original is {stage.cosine:.6f}, under {self.cosine_min}"
                raise NotReady(f"{where}: stage {stage.stage} does not answer rightly: {found}", part=stage.stage)


class Runner(Protocol):
    """Runs the stages of a bundle one by one."""

    def has(self, model: str) -> bool:
        """Return whether a model of an ensemble is there; an ensemble may be made of others."""
        ...

    def step(self, model: str, inputs: Arrays) -> Arrays:
        """Run one model of an ensemble on named arrays."""
        ...

    def ensemble(self, name: EnsembleName, images: list[bytes], texts: list[str], tensors: Arrays) -> Embeddings:
        """Run an ensemble on image files, texts and tensors, those that the ensemble takes, and return its result."""
        ...


def replay(canary: Canary, spec: BundleSpec, runner: Runner) -> CanaryResult:
    """Run every stage of every ensemble on the golden inputs, and compare with the original's outputs."""
    checks = [_check(name, run) for name, run in _stages(canary, spec, runner)]
    return CanaryResult(tuple(checks), canary.spec.cosine_min)


class LocalRunner:
    """Runs the stages in this process. Threads may share it."""

    def __init__(self, encoder: LocalEncoder) -> None:
        """Keep the encoder."""
        self._encoder = encoder

    def has(self, model: str) -> bool:
        """See `Runner.has`: all are."""
        return True

    def step(self, model: str, inputs: Arrays) -> Arrays:
        """See `Runner.step`."""
        bundle = self._encoder.bundle
        if model == IMAGE_PREPROCESS:
            pixels = [preprocess(image, bundle.spec.preprocess) for image in inputs[TensorName.IMAGE]]
            return {TensorName.PIXELS: np.stack(pixels)}
        if model == TOKENIZE:
            texts = [text.decode() for text in inputs[TensorName.TEXT]]
            tokenizer = Tokenizer(bundle.spec.tokenizer, bundle.root)
            return {TensorName.TOKEN_IDS: bundle.spec.tokenizer.cut(tokenizer(texts))}
        return self._encoder.graph(model)(inputs)

    def ensemble(self, name: EnsembleName, images: list[bytes], texts: list[str], tensors: Arrays) -> Embeddings:
        """See `Runner.ensemble`."""
        if name is EnsembleName.ENCODE_TARGET:
            return self._encoder.encode_targets(images)
        if name in (EnsembleName.ENCODE_QUERY, EnsembleName.ENCODE_TEXT_QUERY):
            given = images if name is EnsembleName.ENCODE_QUERY else [None] * len(texts)
            return self._encoder.encode_queries(given, texts)
        spec = self._encoder.bundle.spec
        pixels = self.step(IMAGE_PREPROCESS, {TensorName.IMAGE: bytes_array(images)})
        token_ids = self.step(TOKENIZE, {TensorName.TEXT: bytes_array([text.encode() for text in texts])})
        others = {tensor: tensors[tensor] for tensor in _tensors_of(spec, name)}
        return self._encoder.encode_tensors(name, {**pixels, **token_ids, **others})


class TritonRunner:
    """Runs the stages on a Triton server of any flavour. Each call opens a connection."""

    def __init__(
        self, url: str, names: ServedNames, *, transport: Transport | str = Transport.GRPC, timeout_s: float = 60.0
    ) -> None:
        """Name the server, as `TritonEncoder` does, and its models. Raises ServerError if url is not host:port."""
        check_address(url)
        self._url = url
        self._names = names
        self._transport = member(Transport, transport, "transport")
        self._timeout_s = timeout_s

    def check_live(self) -> None:
        """Raise ServerUnavailable, ServerTimeout or ServerError unless a Triton server answers at the address."""
        with self._client() as client:
            client.is_server_live(**self._limit)

    def has(self, model: str) -> bool:
        """See `Runner.has`."""
        return self._names.has(model)

    def step(self, model: str, inputs: Arrays) -> Arrays:
        """See `Runner.step`. Raises ServerUnavailable, ServerTimeout or ServerError."""
        answer = self._infer(self._names.model(model), inputs)
        response = answer.get_response(as_json=True) if self._grpc else answer.get_response()
        return {output["name"]: answer.as_numpy(output["name"]) for output in response["outputs"]}

    def ensemble(self, name: EnsembleName, images: list[bytes], texts: list[str], tensors: Arrays) -> Embeddings:
        """See `Runner.ensemble`. Bytes behind the end of each image keep the server from answering from its cache."""
        spec = self._names.spec
        given = {
            TensorName.IMAGE: bytes_array([image + os.urandom(8) for image in images]),
            TensorName.TEXT: bytes_array([text.encode() for text in texts]),
            **{tensor: tensors[tensor] for tensor in _tensors_of(spec, name)},
        }
        inputs = {tensor: given[tensor] for tensor in spec.ensembles[name].inputs}
        found: Embeddings = self._infer(self._names.ensemble(name), inputs).as_numpy(spec.ensembles[name].output)
        return found

    @property
    def _grpc(self) -> bool:
        return self._transport is Transport.GRPC

    def _infer(self, model: str, inputs: Arrays) -> Any:
        module = grpcclient if self._grpc else httpclient
        tensors = []
        for name, value in inputs.items():
            shaped = value.reshape(-1, 1) if value.dtype == np.object_ else np.ascontiguousarray(value)
            tensor = module.InferInput(name, list(shaped.shape), np_to_triton_dtype(shaped.dtype))
            tensor.set_data_from_numpy(shaped)
            tensors.append(tensor)
        with self._client() as client:
            return client.infer(model, tensors, **self._limit)

    @property
    def _limit(self) -> dict[str, float]:
        return {"client_timeout": self._timeout_s} if self._grpc else {}

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """Open a connection whose failures are typed errors."""
        client = (
            open_channel(self._url)
            if self._grpc
            else httpclient.InferenceServerClient(
                self._url, connection_timeout=self._timeout_s, network_timeout=self._timeout_s
            )
        )
        try:
            yield client
        except FAILURES as error:
            raise typed_error(error, self._url, None) from None
        finally:
            client.close()


def _stages(canary: Canary, spec: BundleSpec, runner: Runner) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield the name of every stage, and what runs it and returns its cosine."""
    seen: set[str] = set()
    for ensemble in spec.ensembles.values():
        for step in ensemble.steps:
            if step.model not in seen and runner.has(step.model):
                seen.add(step.model)
                yield step.model, partial(_run_step, canary, spec, step.model, runner)
    for name in spec.ensembles:
        yield name, partial(_run_ensemble, canary, name, runner)


def _run_step(canary: Canary, spec: BundleSpec, model: str, runner: Runner) -> float:
    if model == IMAGE_PREPROCESS:
        found = runner.step(model, {TensorName.IMAGE: bytes_array(list(canary.images))})
        return canary.cosine_of_pixels(found[TensorName.PIXELS])
    if model == TOKENIZE:
        found = runner.step(model, {TensorName.TEXT: bytes_array([text.encode() for text in canary.spec.texts])})
        token_ids, expected = found[TensorName.TOKEN_IDS], canary.tensors[TensorName.TOKEN_IDS]
        cut_off = expected[:, token_ids.shape[1] :]
        if len(cut_off.ravel()) and not (spec.tokenizer.cut_lengths and (cut_off == spec.tokenizer.pad_id).all()):
            raise ValueError(f"shape {list(token_ids.shape)}, expected {list(expected.shape)}")
        return float((token_ids == expected[:, : token_ids.shape[1]]).mean())
    inputs = {tensor.name: canary.tensors[tensor.name] for tensor in spec.graphs[model].inputs}
    return canary.cosine_of_outputs(model, runner.step(model, inputs))


def _run_ensemble(canary: Canary, name: EnsembleName, runner: Runner) -> float:
    found = runner.ensemble(name, list(canary.images), list(canary.spec.texts), canary.tensors)
    return canary.cosine_of_result(name, found)


def _tensors_of(spec: BundleSpec, name: EnsembleName) -> list[str]:
    """Return the inputs of an ensemble that another one made."""
    return [tensor for tensor in spec.ensembles[name].inputs if tensor not in (TensorName.IMAGE, TensorName.TEXT)]


def _check(stage: str, run: Callable[[], float]) -> StageCheck:
    try:
        return StageCheck(stage, run())
    except CirrusError as error:
        return StageCheck(stage, math.nan, str(error))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        return StageCheck(stage, math.nan, f"its answer is of another form ({error})")
