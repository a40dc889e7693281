"""W3C trace context: a request belongs to its caller's trace, and what it asks of Triton belongs to the request."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cirrus_client.extras import need

_TRACEPARENT = re.compile(r"00-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})")


class Span(Protocol):
    """One request in a trace."""

    @property
    def traceparent(self) -> str:
        """What is passed on."""
        ...

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        ...

    def end(self, name: str, attributes: Mapping[str, Any], stages: Mapping[str, float]) -> None:
        """End the span. stages: seconds of each stage, in their order."""
        ...


class Tracer(Protocol):
    """Begins spans."""

    def begin(self, traceparent: str | None) -> Span:
        """Begin a request's span. traceparent: the header of the request."""
        ...


@dataclass(frozen=True)
class _Passed:
    trace_id: str
    span_id: str
    flags: str

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def end(self, name: str, attributes: Mapping[str, Any], stages: Mapping[str, float]) -> None:
        """Nobody is told."""


class PassOn:
    """Keeps a caller's trace, or begins one, and tells nobody."""

    def begin(self, traceparent: str | None) -> Span:
        """See `Tracer.begin`."""
        found = _parsed(traceparent)
        trace_id, flags = (secrets.token_hex(16), "00") if found is None else (found["trace"], found["flags"])
        return _Passed(trace_id, secrets.token_hex(8), flags)


class OpenTelemetry:
    """Sends spans to a collector by OTLP over HTTP: one per request, and one below it per stage."""

    def __init__(self, endpoint: str) -> None:
        """Connect to a collector. endpoint: like http://localhost:4318/v1/traces. Raises MissingPackage."""
        need("opentelemetry.sdk", "traces")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "cirrus"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("cirrus")

    def begin(self, traceparent: str | None) -> Span:
        """See `Tracer.begin`."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {} if traceparent is None else {"traceparent": traceparent}
        context = TraceContextTextMapPropagator().extract(carrier)
        return _Recorded(self._tracer, self._tracer.start_span("request", context=context))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class _Recorded:
    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer = tracer
        self._span = span
        self._started_ns = time.time_ns()

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, name: str, attributes: Mapping[str, Any], stages: Mapping[str, float]) -> None:
        from opentelemetry.trace import set_span_in_context

        self._span.update_name(name)
        self._span.set_attributes({key: value for key, value in attributes.items() if value is not None})
        at_ns = self._started_ns
        for stage, seconds in stages.items():
            child = self._tracer.start_span(stage, context=set_span_in_context(self._span), start_time=at_ns)
            at_ns += int(1e9 * seconds)
            child.end(end_time=at_ns)
        self._span.end()


def _parsed(traceparent: str | None) -> re.Match[str] | None:
    found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return None if found is None or not int(found["trace"], 16) or not int(found["span"], 16) else found
