"""The W3C trace context of the running task, which goes to Triton with its requests."""

from __future__ import annotations

from contextvars import ContextVar

TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)
"""The header `traceparent` of what this task asks of a server; None sends none."""


def trace_headers() -> dict[str, str]:
    """Return the headers of a request that belongs to the task's trace."""
    traceparent = TRACEPARENT.get()
    return {} if traceparent is None else {"traceparent": traceparent}
