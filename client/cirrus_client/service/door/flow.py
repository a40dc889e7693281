"""Take a request's body within limits, and end what nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cirrus_client.errors import CirrusError, LimitExceeded, ServerTimeout, TooManyRequests
from cirrus_client.service.limits import Limits
from cirrus_client.service.problems import problem_of

_HELD_BYTES = 2**30
log = logging.getLogger(__name__)


class _HungUp(Exception):
    """The client is gone."""


class Flow:
    """ASGI middleware. A request whose client hangs up, or whose time is over, is cancelled, and so on Triton.

    The bodies of all requests together may take 1 GiB; what comes above is refused.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request with its whole body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answering = _Answering(send)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.timeout_s) as limit:
                await self._read(scope, receive, body)
                await self._run(scope, receive, answering, bytes(body))
        except _HungUp:
            scope.setdefault("state", {})["hung_up"] = True
        except TimeoutError:
            if not limit.expired():
                raise
            late = ServerTimeout(f"the request took more than {self._limits.timeout_s:g} s")
            await self._refuse(late, scope, receive, answering)
        except CirrusError as error:
            await self._refuse(error, scope, receive, answering)
        finally:
            self._held -= len(body)

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Append the body. Raises LimitExceeded, or TooManyRequests if other requests hold too much already."""
        allowed = self._limits.max_body_bytes
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > allowed:
            raise _too_large(allowed)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _HungUp
            part = message.get("body", b"")
            if len(body) + len(part) > allowed:
                raise _too_large(allowed)
            if self._held + len(part) > _HELD_BYTES:
                raise TooManyRequests("the service holds too much of other requests; try again", retry_after_s=1)
            body += part
            self._held += len(part)
            if not message.get("more_body", False):
                return

    async def _run(self, scope: Scope, receive: Receive, send: _Answering, body: bytes) -> None:
        gone = asyncio.Event()
        given = False

        async def replay() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        running = asyncio.ensure_future(self._app(scope, replay, send))
        hanging_up = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({running, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not send.ended:
                raise _HungUp
            await running
        finally:
            gone.set()
            for task in (running, hanging_up):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _refuse(self, error: CirrusError, scope: Scope, receive: Receive, send: _Answering) -> None:
        if not send.started:
            await problem_of(error, scope)(scope, receive, send)


class _Answering:
    """Sends, and knows how far the answer is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.ended = False

    async def __call__(self, message: Message) -> None:
        self.started = self.started or message["type"] == "http.response.start"
        await self._send(message)
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(allowed: int) -> LimitExceeded:
    return LimitExceeded(
        f"the body of the request has more than {allowed:,} bytes", limit="max_body_bytes", allowed=allowed
    )
