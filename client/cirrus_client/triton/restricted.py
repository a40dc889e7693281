"""Triton's administrative endpoints, and the secret that opens them.

Triton takes the secret on its command line alone.
"""

from __future__ import annotations

from cirrus_client.names import Transport

RESTRICTED = ("shared-memory", "model-repository", "statistics", "trace", "logging")
"""Groups of endpoints that no client of Cirrus needs. Health, metadata, configuration and inference stay open."""

_HEADER = "cirrus-admin"
_GRPC_PREFIX = "triton-grpc-protocol-"


def restrictions(secret: str) -> list[str]:
    """Return the options of `tritonserver` that refuse the endpoints without the secret, over HTTP and gRPC."""
    setting = f"{','.join(RESTRICTED)}:{_HEADER}={secret}"
    return [f"--http-restricted-api={setting}", f"--grpc-restricted-protocol={setting}"]


def admin_headers(secret: str, transport: Transport) -> dict[str, str]:
    """Return the headers of a request that may use the endpoints."""
    return {f"{_GRPC_PREFIX if transport is Transport.GRPC else ''}{_HEADER}": secret}
