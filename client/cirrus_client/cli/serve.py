"""`cirrus serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.cli.console import echo
from cirrus_client.cli.served import find_repository
from cirrus_client.extras import need
from cirrus_client.telemetry import switch_off
from cirrus_client.triton.server import TritonServer, find_server


def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle, a suggester, or what `cirrus repository` wrote.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback needs --trust-network.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port for HTTP requests.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC requests.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of Prometheus's page, /metrics, on loopback.")] = 8002,
    trust_network: Annotated[
        bool, typer.Option("--trust-network", help="Everybody who reaches --host may take this server over.")
    ] = False,
) -> None:
    """Serve a bundle with the Triton server of the nvidia-pytriton wheel, until interrupted."""
    switch_off()
    find_server()
    need("onnxruntime", "cirrus serve")
    server = TritonServer(
        find_repository(bundle),
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        trust_network=trust_network,
    )
    with server:
        echo(
            f"{bundle} is served: gRPC {host}:{grpc_port}, HTTP {host}:{http_port}, "
            f"metrics http://127.0.0.1:{metrics_port}/metrics; log {server.log_path}; stop with Ctrl-C"
        )
        server.wait()
