"""Addresses that the user names: origins of pages that may call, hosts of images, and the collector of traces."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from cirrus_client.errors import ServerError

DEFAULT_PORTS = {"http": 80, "https": 443}


def check_origin(origin: str) -> None:
    """Raise ServerError unless an origin is written as browsers send it, so that it is equal to one."""
    parts = _split(origin)
    bare = parts is not None and origin == f"{parts.scheme}://{parts.netloc}".lower() and "@" not in origin
    if parts is None or not bare or parts.port == DEFAULT_PORTS.get(parts.scheme, 0):
        raise ServerError(
            f"--cors-origin {origin}: expected an origin as browsers send it, like https://shop.example: in lower "
            "case, without a path, and without the scheme's own port"
        )


def check_host(host: str) -> None:
    """Raise ServerError unless a host, maybe with a port, is one and nothing else."""
    parts = _split(f"//{host}")
    if parts is None or parts.netloc != host or "@" in host:
        raise ServerError(f"--image-host {host}: expected a host, or host:port, like cdn.example or cdn.example:8443")


def check_endpoint(endpoint: str) -> None:
    """Raise ServerError unless a collector is named by a URL with a path: nothing is added to it."""
    parts = _split(endpoint)
    if parts is None or parts.scheme not in DEFAULT_PORTS or not parts.path.strip("/"):
        raise ServerError(
            f"--otlp-endpoint {endpoint}: expected a URL that takes traces, like http://localhost:4318/v1/traces"
        )


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:  # of a port that is no number
        return None
