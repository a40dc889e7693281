"""Encode through a Triton server: encoded bytes go in, embeddings come out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
import tritonclient.http.aio as httpaio

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings, ImageInput, image_bytes
from cirrus_client.errors import ServerUnavailable
from cirrus_client.image.preprocess import check_header
from cirrus_client.names import EnsembleName, Transport
from cirrus_client.triton.requests import (
    DEFAULT_RETRY,
    FAILURES,
    Request,
    RetryPolicy,
    ServedModel,
    check_answer,
    query_requests,
    read_config,
    target_requests,
    typed_error,
)
from cirrus_client.triton.wire import served_name

T = TypeVar("T")


class TritonEncoder:
    """A bundle's ensembles on a Triton server. Nothing is contacted before the first call.

    One object may be used by several threads; each gets its own connection. timeout_s bounds one attempt of one
    request. An unreachable or restarting server is tried again as `retry` says; bad input never is.
    """

    def __init__(
        self,
        url: str,
        *,
        bundle: str | None = None,
        transport: Transport = Transport.GRPC,
        timeout_s: float = 30.0,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """url: host:port. bundle: which of several that the server has; None where it serves one."""
        self.url = url
        self._bundle = bundle
        self._transport = transport
        self._timeout_s = timeout_s
        self._retry = retry
        self._connections = threading.local()
        self._served: ServedModel | None = None

    @property
    def space(self) -> SpaceSpec:
        """The space of the served bundle, as the server tells it."""
        return self._model().space

    @property
    def concurrency(self) -> int:
        """Enough for a batch that is decoded, one that is encoded and one that gathers on the server."""
        return 4

    def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `Encoder.encode_queries`. Raises ServerUnavailable, ServerTimeout or ServerError as well."""
        return self._encode(query_requests(images, texts, self._model()), (len(images), self.space.dim))

    def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """See `Encoder.encode_targets`. Raises ServerUnavailable, ServerTimeout or ServerError as well."""
        return self.encode_prepared([image_bytes(image) for image in images])

    def prepare(self, image: bytes) -> bytes:
        """Return the bytes themselves, after a look at their header. Raises InvalidImage."""
        check_header(image)
        return image

    def encode_prepared(self, prepared: Sequence[bytes]) -> Embeddings:
        """See `Encoder.encode_prepared`."""
        return self._encode(target_requests(prepared, self._model()), (len(prepared), *self.space.item_shape))

    def _model(self) -> ServedModel:
        if self._served is None:
            self._served = read_config(
                self._call(lambda client: _config(client, self._transport, self._bundle)), self.url, self._bundle
            )
        return self._served

    def _encode(self, requests: Sequence[Request], shape: tuple[int, ...]) -> Embeddings:
        embeddings = np.empty(shape, dtype=np.float32)
        for request in requests:
            answer = self._call(partial(self._infer, request=request), request)
            embeddings[request.rows] = check_answer(answer, request, self.space)
        return embeddings

    def _infer(self, client: Any, request: Request) -> Any:
        module = grpcclient if self._transport is Transport.GRPC else httpclient
        timeout = {"client_timeout": self._timeout_s} if self._transport is Transport.GRPC else {}
        return client.infer(request.model, request.inputs(module), **timeout)

    def _call(self, function: Callable[[Any], T], request: Request | None = None) -> T:
        for pause_s in self._retry.pauses():
            try:
                return function(self._client())
            except FAILURES as error:
                failure = typed_error(error, self.url, request)
                if not isinstance(failure, ServerUnavailable) or pause_s is None:
                    raise failure from None
                time.sleep(pause_s)
        raise AssertionError("the last pause is None")

    def _client(self) -> Any:
        if not hasattr(self._connections, "client"):
            if self._transport is Transport.GRPC:
                self._connections.client = grpcclient.InferenceServerClient(self.url)
            else:
                self._connections.client = httpclient.InferenceServerClient(
                    self.url, connection_timeout=self._timeout_s, network_timeout=self._timeout_s
                )
        return self._connections.client


class AsyncTritonEncoder:
    """`TritonEncoder` for asyncio: the same verbs as coroutines, for use in one event loop."""

    def __init__(
        self,
        url: str,
        *,
        bundle: str | None = None,
        transport: Transport = Transport.GRPC,
        timeout_s: float = 30.0,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """url: host:port. bundle: which of several that the server has; None where it serves one."""
        self.url = url
        self._bundle = bundle
        self._transport = transport
        self._timeout_s = timeout_s
        self._retry = retry
        self._client: Any = None
        self._served: ServedModel | None = None

    async def space(self) -> SpaceSpec:
        """Return the space of the served bundle, as the server tells it."""
        return (await self._model()).space

    async def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `TritonEncoder.encode_queries`."""
        served = await self._model()
        return await self._encode(query_requests(images, texts, served), (len(images), served.space.dim))

    async def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """See `TritonEncoder.encode_targets`."""
        encoded = [image_bytes(image) for image in images]
        served = await self._model()
        return await self._encode(target_requests(encoded, served), (len(encoded), *served.space.item_shape))

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _model(self) -> ServedModel:
        if self._served is None:
            config = await self._call(lambda client: _config(client, self._transport, self._bundle))
            self._served = read_config(config, self.url, self._bundle)
        return self._served

    async def _encode(self, requests: Sequence[Request], shape: tuple[int, ...]) -> Embeddings:
        space = (await self._model()).space
        embeddings = np.empty(shape, dtype=np.float32)

        async def encode(request: Request) -> None:
            answer = await self._call(lambda client: self._infer(client, request), request)
            embeddings[request.rows] = check_answer(answer, request, space)

        await asyncio.gather(*(encode(request) for request in requests))
        return embeddings

    def _infer(self, client: Any, request: Request) -> Awaitable[Any]:
        if self._transport is Transport.GRPC:
            answer = client.infer(request.model, request.inputs(grpcclient), client_timeout=self._timeout_s)
        else:
            answer = client.infer(request.model, request.inputs(httpclient))
        return asyncio.wait_for(answer, self._timeout_s)

    async def _call(self, function: Callable[[Any], Awaitable[T]], request: Request | None = None) -> T:
        for pause_s in self._retry.pauses():
            try:
                return await function(self._connected())
            except FAILURES as error:
                failure = typed_error(error, self.url, request)
                if not isinstance(failure, ServerUnavailable) or pause_s is None:
                    raise failure from None
                await asyncio.sleep(pause_s)
        raise AssertionError("the last pause is None")

    def _connected(self) -> Any:
        if self._client is None:
            module = grpcaio if self._transport is Transport.GRPC else httpaio
            self._client = module.InferenceServerClient(self.url)
        return self._client


def _config(client: Any, transport: Transport, bundle: str | None) -> Any:
    """The served ensemble's configuration as JSON; a coroutine of it from an asyncio client."""
    as_json = {"as_json": True} if transport is Transport.GRPC else {}
    return client.get_model_config(served_name(EnsembleName.ENCODE_TARGET, bundle), **as_json)
