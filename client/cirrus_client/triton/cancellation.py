"""Which Triton servers may be told that a request is cancelled.

Before 25.07, a cancellation over gRPC that meets the end of its own request ends the whole server (server#7368 and
server#8034): seen here once in some thousand cancellations of Triton 24.10.
"""

from __future__ import annotations

from cirrus_client.plans import version_numbers
from cirrus_client.triton.channel import open_channel
from cirrus_client.triton.requests import FAILURES, typed_error

_FIRST_SAFE = (2, 59)  # the server of 25.07


def survives_cancellation(url: str, *, timeout_s: float = 10.0) -> bool:
    """Return whether the server at host:port may be sent cancellations. Raises ServerUnavailable or ServerError."""
    client = open_channel(url)
    try:
        version = client.get_server_metadata(client_timeout=timeout_s).version
        return version_numbers(version)[: len(_FIRST_SAFE)] >= _FIRST_SAFE
    except FAILURES as error:
        raise typed_error(error, url, None) from None
    finally:
        client.close()
