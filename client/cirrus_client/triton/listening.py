"""Addresses to listen on."""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import ExitStack

from cirrus_client.errors import ServerError

_WAITING = 2048
"""How many connections may wait to be accepted."""


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ServerError if the address or the port can't be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_WAITING)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServerError(f"can't listen on {host}:{port}: {reason}; choose another host or port") from None


def ipv4_address(host: str) -> str:
    """Return the IPv4 address of a host. Triton's HTTP server takes nothing else: of a name it makes 255.255.255.255.

    Raises ServerError if there is none.
    """
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        raise ServerError(
            f"can't listen on {host}: Triton needs an IPv4 address, and there is none ({error.strerror}); 127.0.0.1 is "
            "this machine alone, 0.0.0.0 is every address"
        ) from None


def are_free(host: str, ports: Collection[int]) -> bool:
    """Return whether all ports of an address can be had now."""
    with ExitStack() as held:
        try:
            for port in ports:
                held.enter_context(listening(host, port))
        except ServerError:
            return False
    return True
