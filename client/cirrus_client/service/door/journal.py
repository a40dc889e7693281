"""Give every request an id, and log and count how it ended."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cirrus_client.service.metrics import Metrics
from cirrus_client.service.stopwatch import Stopwatch
from cirrus_client.service.tracing import Tracer
from cirrus_client.triton.trace import TRACEPARENT

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_CLIENT_GONE = 499
log = logging.getLogger("cirrus_client.service.requests")


class Journal:
    """ASGI middleware. The id is the request's own `X-Request-ID`, if that is a plain one; the answer has it too."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log and count its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        headers = Headers(scope=scope)
        own = headers.get("x-request-id", "")
        state["request_id"] = own if _ID.fullmatch(own) else secrets.token_hex(16)
        span = self._tracer.begin(headers.get("traceparent"))
        TRACEPARENT.set(span.traceparent)
        started, status = time.perf_counter(), _CLIENT_GONE

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = state["request_id"]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            client = scope.get("client")
            fields = {
                "request_id": state["request_id"],
                "trace_id": span.trace_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round(1e3 * (time.perf_counter() - started), 3),
                "key_id": state.get("key_id"),
                "client": client[0] if client else None,
                "collection": state.get("collection"),
            }
            watch: Stopwatch | None = state.get("watch")
            stages = {} if watch is None else watch.seconds
            route = getattr(scope.get("route"), "path_format", "other")
            self._metrics.request(scope["method"] if scope["method"] in _METHODS else "other", route, status)
            span.end(f"{scope['method']} {route}", fields, dict(stages.items()))
            fields |= {f"{stage}_ms": round(1e3 * seconds, 3) for stage, seconds in stages.items()}
            log.info("%s %s %d", scope["method"], _in_one_line(scope["path"]), status, extra={"fields": fields})


def _in_one_line(path: str) -> str:
    """Return a path with what ends a line, or moves a terminal's cursor, escaped: a caller writes no lines of a log."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in path)
