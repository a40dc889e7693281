"""Encode on a Triton server: image files and texts are sent, embeddings come back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import tritonclient.http.aio as httpaio

from cirrus_client.bundle import SpaceSpec
from cirrus_client.choices import member
from cirrus_client.encoders.protocol import Embeddings, prepare_all
from cirrus_client.encoders.reranker import Scores
from cirrus_client.errors import ServerError, ServerUnavailable
from cirrus_client.forks import MadeHere
from cirrus_client.image.decode import check_header
from cirrus_client.image.inputs import ImageInput
from cirrus_client.names import EnsembleName, Transport
from cirrus_client.triton.channel import open_async_channel, open_channel
from cirrus_client.triton.requests import (
    DEFAULT_RETRY,
    FAILURES,
    Request,
    RetryPolicy,
    ServedModel,
    check_address,
    check_answer,
    condition_request,
    is_of_batch,
    query_requests,
    read_config,
    score_requests,
    target_requests,
    typed_error,
)
from cirrus_client.triton.trace import trace_headers
from cirrus_client.triton.wire import served_name

_HTTP_CONNECTIONS = 128
_TRUSTED_S = 1.0
"""No server is replaced by another one in less: an answer within this time of its configuration is of that bundle."""
T = TypeVar("T")
Split: TypeAlias = Callable[[ServedModel], list[Request]]
"""Splits the items of a call into requests that a server takes."""


class _TritonClient:
    """The part that the clients for threads and for asyncio share: the server's address, retries and typed errors."""

    def __init__(
        self,
        url: str,
        *,
        bundle: str | None = None,
        transport: Transport | str = Transport.GRPC,
        timeout_s: float = 30.0,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """See `TritonEncoder`."""
        check_address(url)
        self.url = url
        self._bundle = bundle
        self._transport = member(Transport, transport, "transport")
        self._timeout_s = timeout_s
        self._retry = retry
        self._served: ServedModel | None = None
        self._asked_at = 0.0
        self._expected: SpaceSpec | None = None

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """Pickle the address and the options. The copy opens connections of its own."""
        reopen = partial(
            type(self),
            self.url,
            bundle=self._bundle,
            transport=self._transport,
            timeout_s=self._timeout_s,
            retry=self._retry,
        )
        return reopen, ()

    def _config_of(self, client: Any) -> Any:
        """Request the configuration of the served ensemble as JSON. An asyncio client returns a coroutine."""
        options: dict[str, Any] = {}
        if self._transport is Transport.GRPC:
            options = {"as_json": True, "client_timeout": self._timeout_s}
        return client.get_model_config(served_name(EnsembleName.ENCODE_TARGET, self._bundle), **options)

    def expect(self, space: SpaceSpec) -> None:
        """Raise ServerError in every call while the server serves another space than this one."""
        self._expected = space

    def _is_due(self) -> bool:
        """Whether an answer may come from a server that was started since the configuration was read."""
        return time.monotonic() - self._asked_at > _TRUSTED_S

    def _accept(self, config: Any, asked_at: float) -> ServedModel:
        """Return what a configuration says that was asked for at this time.

        Raises ServerError if the space is not the expected one, or else that of the first configuration: an index or a
        gallery that relies on it would get vectors that it can't be compared with.
        """
        found = read_config(config, self.url, self._bundle)
        expected = self._expected or (self._served or found).space
        if found.space.fingerprint != expected.fingerprint:
            differences = ", ".join(expected.differences(found.space)) or "its vectors"
            since = "this encoder is for" if self._expected else "when this encoder first asked"
            raise ServerError(
                f"the server at {self.url} serves another bundle than {since}; what differs: {differences}. Its "
                "embeddings don't mix with those of that bundle: serve that one, or open another encoder",
                url=self.url,
            )
        self._served = found
        self._asked_at = asked_at
        return found

    def _pause_after(self, error: BaseException, request: Request | None, pause_s: float | None) -> float:
        """Return the pause before the next attempt in seconds. Raises the typed error if there is no next attempt."""
        failure = typed_error(error, self.url, request)
        if pause_s is None or not isinstance(failure, ServerUnavailable):
            raise failure from None
        return pause_s


class TritonEncoder(_TritonClient):
    """Runs a bundle's ensembles on a Triton server.

    Threads may share an encoder: each has its own connection, which ends with the thread. `close`, or the end of a
    `with` block, closes them all, and a call that another thread has under way gets a ServerError. So does a call after
    which the server turns out to serve another space than at first.
    A process that is forked after the first call gets a ServerError: use "spawn".
    """

    def __init__(
        self,
        url: str,
        *,
        bundle: str | None = None,
        transport: Transport | str = Transport.GRPC,
        timeout_s: float = 30.0,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """Name the server; nothing is contacted before the first call.

        url: host:port. bundle: the name of the bundle, if the server has several. timeout_s: time limit of one attempt
        of one request. retry: when an unreachable or restarting server is tried again; bad input never is. Raises
        ServerError if the url is not host:port.
        """
        super().__init__(url, bundle=bundle, transport=transport, timeout_s=timeout_s, retry=retry)
        self._of_thread = threading.local()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._connecting = threading.Lock()
        self._made_here: MadeHere | None = None

    @property
    def space(self) -> SpaceSpec:
        """The vector space of the served bundle. The first use asks the server."""
        return self._model().space

    @property
    def concurrency(self) -> int:
        """Four: one batch is decoded, one is encoded, and two wait in the server's queue."""
        return 4

    def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `Encoder.encode_queries`. Raises ServerUnavailable, ServerTimeout or ServerError as well."""
        return self._encode(partial(query_requests, images, texts), (len(images), self.space.dim))

    def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """See `Encoder.encode_targets`. Raises ServerUnavailable, ServerTimeout or ServerError as well."""
        return self.encode_prepared(prepare_all(images, self.prepare))

    def prepare(self, image: bytes) -> bytes:
        """Check the header of an image file and return the bytes unchanged. Raises InvalidImage."""
        return _checked(image)

    def encode_prepared(self, prepared: Sequence[bytes]) -> Embeddings:
        """See `Encoder.encode_prepared`."""
        return self._encode(partial(target_requests, prepared), (len(prepared), *self.space.item_shape))

    def scores(self, image: ImageInput | None, text: str | None, candidates: Sequence[ImageInput]) -> Scores:
        """See `Reranker.scores`. Raises ServerUnavailable, ServerTimeout or ServerError as well."""
        asked = condition_request(image, text, self._model())
        encoded = prepare_all(candidates, _checked, item="candidate")
        condition = self._call(partial(self._infer, request=asked), asked)[0]
        return self._encode(partial(score_requests, condition, text, encoded), (len(encoded), 1))[:, 0]

    def close(self) -> None:
        """Close the connections of all threads. A later call opens a new one."""
        with self._connecting:
            closing = list(self._connections)
            self._connections = weakref.WeakSet()
            self._of_thread = threading.local()  # first, so that a call that is ended by this knows why
        for client in closing:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _model(self) -> ServedModel:
        if self._served is None:
            return self._ask()
        return self._served

    def _ask(self) -> ServedModel:
        asked_at = time.monotonic()
        return self._accept(self._call(self._config_of), asked_at)

    def _encode(self, split: Split, shape: tuple[int, ...]) -> Embeddings:
        served = self._model()
        try:
            embeddings = self._results(split(served), shape)
        except ServerError as error:
            if not is_of_batch(error) or (now := self._ask()).max_batch >= served.max_batch:
                raise
            embeddings = self._results(split(now), shape)
        if len(embeddings) and self._is_due():
            self._ask()
        return embeddings

    def _results(self, requests: Sequence[Request], shape: tuple[int, ...]) -> Embeddings:
        results = np.empty(shape, dtype=np.float32)
        for request in requests:
            results[request.rows] = self._call(partial(self._infer, request=request), request)
        return results

    def _infer(self, client: Any, request: Request) -> Embeddings:
        if self._transport is Transport.GRPC:
            answer = client.infer(request.model, request.inputs(grpcclient), client_timeout=self._timeout_s)
        else:
            answer = client.infer(request.model, request.inputs(httpclient))
        return check_answer(answer, request, self.space)

    def _call(self, function: Callable[[Any], T], request: Request | None = None) -> T:
        for pause_s in self._retry.pauses():
            client = self._connection()
            try:
                return function(client)
            except (*FAILURES, RuntimeError) as error:  # a RuntimeError is that of a closed pool of HTTP connections
                if client is not getattr(self._of_thread, "client", None):
                    raise _closed_meanwhile(self.url) from None
                if not isinstance(error, FAILURES):
                    raise
                time.sleep(self._pause_after(error, request, pause_s))
        raise AssertionError("the last pause is None")

    def _connection(self) -> Any:
        if self._made_here is not None:
            self._made_here.check(ServerError)
        client = getattr(self._of_thread, "client", None)
        if client is None:
            with self._connecting:
                self._made_here = self._made_here or MadeHere(f"a connection to {self.url}")
                self._of_thread.client = client = self._connected()
                self._connections.add(client)
        return client

    def _connected(self) -> Any:
        if self._transport is Transport.GRPC:
            return open_channel(self.url)
        return httpclient.InferenceServerClient(
            self.url, connection_timeout=self._timeout_s, network_timeout=self._timeout_s
        )


class AsyncTritonEncoder(_TritonClient):
    """`TritonEncoder` for asyncio: the same methods as coroutines. Tasks may share it, also those of other event loops.

    Each event loop has a connection of its own. `close`, or the end of an `async with` block, closes the one of the
    running loop, and a call that another task has under way may get a ServerError. Over HTTP, at most 128 requests per
    loop are under way; the others wait, and their time limit begins when they are sent.
    """

    def __init__(
        self,
        url: str,
        *,
        bundle: str | None = None,
        transport: Transport | str = Transport.GRPC,
        timeout_s: float = 30.0,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """See `TritonEncoder`."""
        super().__init__(url, bundle=bundle, transport=transport, timeout_s=timeout_s, retry=retry)
        self._of_loop: dict[asyncio.AbstractEventLoop, _LoopConnection] = {}

    async def space(self) -> SpaceSpec:
        """Return the vector space of the served bundle. The first call asks the server."""
        return (await self._model()).space

    async def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `TritonEncoder.encode_queries`."""
        space = await self.space()
        return await self._encode(partial(query_requests, images, texts), (len(images), space.dim))

    async def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """See `TritonEncoder.encode_targets`."""
        encoded = prepare_all(images, _checked)
        space = await self.space()
        return await self._encode(partial(target_requests, encoded), (len(encoded), *space.item_shape))

    async def scores(self, image: ImageInput | None, text: str | None, candidates: Sequence[ImageInput]) -> Scores:
        """See `TritonEncoder.scores`."""
        served = await self._model()
        asked = condition_request(image, text, served)
        encoded = prepare_all(candidates, _checked, item="candidate")
        condition = (await self._call(lambda client: self._infer(client, asked, served.space), asked))[0]
        return (await self._encode(partial(score_requests, condition, text, encoded), (len(encoded), 1)))[:, 0]

    async def close(self) -> None:
        """Close the running event loop's connection. A later call opens a new one."""
        connection = self._of_loop.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _model(self) -> ServedModel:
        if self._served is None:
            return await self._ask()
        return self._served

    async def _ask(self) -> ServedModel:
        asked_at = time.monotonic()
        config = await self._call(lambda client: asyncio.wait_for(self._config_of(client), self._timeout_s))
        return self._accept(config, asked_at)

    async def _encode(self, split: Split, shape: tuple[int, ...]) -> Embeddings:
        served = await self._model()
        try:
            embeddings = await self._results(split(served), served.space, shape)
        except ServerError as error:
            if not is_of_batch(error) or (now := await self._ask()).max_batch >= served.max_batch:
                raise
            embeddings = await self._results(split(now), now.space, shape)
        if len(embeddings) and self._is_due():
            await self._ask()
        return embeddings

    async def _results(self, requests: Sequence[Request], space: SpaceSpec, shape: tuple[int, ...]) -> Embeddings:
        """Return the results of requests, which are under way at the same time.

        After the first error no further request is sent and none is tried again. Those on the server are waited for:
        a cancellation could end it (`survives_cancellation`).
        """
        results = np.empty(shape, dtype=np.float32)
        errors: list[BaseException] = []
        failed = asyncio.Event()

        async def request_one(request: Request) -> None:
            try:
                infer = partial(self._infer, request=request, space=space)
                results[request.rows] = await self._call(infer, request, given_up=failed)
            except BaseException as error:
                errors.append(error)
                failed.set()
                raise

        await asyncio.gather(*map(request_one, requests), return_exceptions=True)
        if errors:
            raise errors[0]
        return results

    async def _infer(self, client: Any, request: Request, space: SpaceSpec) -> Embeddings:
        if self._transport is Transport.GRPC:
            answer = client.infer(
                request.model, request.inputs(grpcclient), client_timeout=self._timeout_s, headers=trace_headers()
            )
        else:
            answer = client.infer(request.model, request.inputs(httpclient), headers=trace_headers())
        return check_answer(await asyncio.wait_for(answer, self._timeout_s), request, space)

    async def _call(
        self,
        function: Callable[[Any], Awaitable[T]],
        request: Request | None = None,
        *,
        given_up: asyncio.Event | None = None,
    ) -> T:
        given_up = given_up or asyncio.Event()
        for pause_s in self._retry.pauses():
            connection = self._connection()
            try:
                async with connection.turns:
                    if given_up.is_set():
                        raise _GivenUp
                    return await function(connection.client)
            except FAILURES as error:
                await _pause(self._pause_after(error, request, pause_s), given_up)
            except (asyncio.CancelledError, RuntimeError):  # what a closed channel, or HTTP session, ends its calls in
                task = asyncio.current_task()
                if self._of_loop.get(asyncio.get_running_loop()) is connection or (task and task.cancelling()):
                    raise
                raise _closed_meanwhile(self.url) from None
        raise AssertionError("the last pause is None")

    def _connection(self) -> _LoopConnection:
        loop = asyncio.get_running_loop()
        if loop not in self._of_loop:
            for ended in [other for other in list(self._of_loop) if other.is_closed()]:
                self._of_loop.pop(ended, None)  # another thread may have found it as well
            if self._transport is Transport.GRPC:
                self._of_loop[loop] = _LoopConnection(open_async_channel(self.url), contextlib.nullcontext())
            else:
                client = httpaio.InferenceServerClient(self.url, conn_limit=_HTTP_CONNECTIONS)
                self._of_loop[loop] = _LoopConnection(client, asyncio.Semaphore(_HTTP_CONNECTIONS))
        return self._of_loop[loop]


class _GivenUp(Exception):
    """Another request of the same call failed."""


@dataclass(frozen=True)
class _LoopConnection:
    """An event loop's connection. turns: limits how many requests are under way."""

    client: Any
    turns: AbstractAsyncContextManager[None]


async def _pause(pause_s: float, given_up: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(given_up.wait(), pause_s)


def _checked(image: bytes) -> bytes:
    check_header(image)
    return image


def _closed_meanwhile(url: str) -> ServerError:
    return ServerError(f"the encoder of {url} was closed during this call; close it when its calls are done", url=url)
