"""One real Triton server for the session, with the demo bundle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cirrus_client.triton.server import TritonServer, free_ports


@pytest.fixture(scope="session")
def server(bundle) -> Iterator[TritonServer]:
    http, grpc, metrics = free_ports(3)
    with TritonServer(
        bundle.root / "triton" / "python", http_port=http, grpc_port=grpc, metrics_port=metrics
    ) as running:
        yield running
