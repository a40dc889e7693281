"""A service in this process, over bundles that are on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from starlette.testclient import TestClient

from cirrus_client.service.app import Service, create_app
from cirrus_client.service.collection import Source
from cirrus_client.service.door.gate import Access
from cirrus_client.service.encoders import Encoders
from cirrus_client.service.limits import Limits
from cirrus_client.service.metrics import Metrics
from cirrus_client.service.readiness import Canaries
from cirrus_client.service.registry import Registry


@contextmanager
def in_process(
    collections: Mapping[str, Source], *, limits: Limits | None = None, access: Access | None = None, **client: object
) -> Iterator[TestClient]:
    """Start a service over collections and yield a client of it. client: options of the client."""
    limits, access, metrics = limits or Limits(), access or Access(), Metrics()
    with Encoders(limits, metrics, triton=None, engine="onnxruntime") as encoders:
        registry = Registry(encoders.open)
        for name, source in collections.items():
            registry.add(name, [source])

        @asynccontextmanager
        async def opening():
            canaries = Canaries(registry)
            await canaries.replay()
            yield Service(registry, canaries, metrics, limits, access)
            await registry.close()

        app = create_app(opening, limits=limits, access=access, metrics=metrics)
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=False, **client) as started:
            yield started
