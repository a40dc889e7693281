"""Which hosts are this machine. It is asked directly, whatever proxy the environment names."""

from __future__ import annotations

import ipaddress

WITHOUT_PROXY = ("grpc.enable_http_proxy", 0)
"""Option of a gRPC channel that connects directly. By default gRPC asks the proxy of `http_proxy` for loopback, too."""


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_this_machine(host: str) -> bool:
    """Return whether a host to connect to is surely this machine: loopback, or 0.0.0.0, where a server listens."""
    try:
        return is_loopback(host) or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
