"""gRPC channels to a Triton server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
from tritonclient.utils import InferenceServerException

from cirrus_client.hosts import WITHOUT_PROXY, is_this_machine

_LARGEST_MESSAGE = 2**31 - 1
_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS = 100, 500

_OPTIONS = [
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", _FIRST_PAUSE_MS),
    ("grpc.min_reconnect_backoff_ms", _LONGEST_PAUSE_MS),
    ("grpc.max_reconnect_backoff_ms", _LONGEST_PAUSE_MS),
    ("grpc.use_local_subchannel_pool", 1),
]
"""Options of every channel.

By default gRPC waits for up to two minutes before it connects again, and all channels of a process share that wait.
These channels answer within half a second after a server is back. The messages are as large as tritonclient's own.
"""


def open_channel(url: str) -> grpcclient.InferenceServerClient:
    """Return a client of a server's gRPC endpoint. Nothing is contacted yet. url: host:port."""
    return grpcclient.InferenceServerClient(url, channel_args=_options(url))


def is_ready(url: str, *, timeout_s: float = 2.0) -> bool:
    """Return whether the server at host:port is there and every model of it is ready."""
    return _says(url, lambda client: client.is_server_ready(client_timeout=timeout_s))


def has_model(url: str, model: str, *, timeout_s: float = 10.0) -> bool:
    """Return whether the server at host:port is there and a model of it is ready."""
    return _says(url, lambda client: client.is_model_ready(model, client_timeout=timeout_s))


def _says(url: str, ask: Callable[[grpcclient.InferenceServerClient], Any]) -> bool:
    client = open_channel(url)
    try:
        return bool(ask(client))
    except InferenceServerException:
        return False
    finally:
        client.close()


def open_async_channel(url: str) -> grpcaio.InferenceServerClient:
    """Return `open_channel`'s client for asyncio, which belongs to the running event loop."""
    return grpcaio.InferenceServerClient(url, channel_args=_options(url))


def _options(url: str) -> list[tuple[str, int]]:
    host = url.rpartition(":")[0].strip("[]")
    return [*_OPTIONS, WITHOUT_PROXY] if is_this_machine(host) else _OPTIONS
