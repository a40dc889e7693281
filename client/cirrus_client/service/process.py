"""Run the service: start the encoders, open the collections, listen, and stop all of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cirrus_client.errors import ServerError
from cirrus_client.extras import need
from cirrus_client.service.collection import Source
from cirrus_client.service.encoders import Encoders, TritonPorts
from cirrus_client.service.limits import Limits
from cirrus_client.service.registry import Registry

_GRACE_S = 10


@dataclass(frozen=True)
class ServiceOptions:
    """What is served, and how.

    collections: the sources of each, by name; the first source is active. triton: ports of the first Triton server;
    None encodes in this process. engine: see `LocalEncoder`.
    """

    collections: Mapping[str, Sequence[Source]]
    host: str = "127.0.0.1"
    port: int = 8080
    triton: TritonPorts | None = None
    engine: str | None = None
    limits: Limits = field(default_factory=Limits)


def run_service(options: ServiceOptions, *, announce: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal ends it. announce: is called when everything is ready.

    Raises MissingPackage, ServerError if a port is taken, and what opening the collections raises.
    """
    uvicorn = need("uvicorn", "the search service")
    need("fastapi", "the search service")
    from cirrus_client.service.app import Service, create_app

    listening = _listening(options.host, options.port)
    with listening, Encoders(options.limits, triton=options.triton, engine=options.engine) as encoders:
        registry = Registry(encoders.open)
        for name, sources in options.collections.items():
            registry.add(name, sources)

        @asynccontextmanager
        async def opening() -> AsyncIterator[Service]:
            yield Service(registry, options.limits)
            await registry.close()

        class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                announce()

        config = uvicorn.Config(
            create_app(opening),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            lifespan="on",
        )
        Server(config).run([listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ServerError(f"can't listen on {host}:{port}: {error.strerror}; choose another --port") from None
