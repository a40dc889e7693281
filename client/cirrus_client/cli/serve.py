"""`cirrus serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.bundle import Bundle
from cirrus_client.extras import need
from cirrus_client.triton.server import TritonServer, find_server


def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle, a suggester, or what `cirrus repository` wrote.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback exposes the server.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port for HTTP requests.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC requests.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of Prometheus's page, /metrics.")] = 8002,
) -> None:
    """Serve a bundle with the Triton server of the nvidia-pytriton wheel, until interrupted."""
    find_server()
    need("onnxruntime", "cirrus serve")
    server = TritonServer(
        _repository(bundle), host=host, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port
    )
    with server:
        typer.echo(
            f"{bundle} is served: gRPC {host}:{grpc_port}, HTTP {host}:{http_port}, "
            f"metrics http://{host}:{metrics_port}/metrics; log {server.log_path}; stop with Ctrl-C"
        )
        server.wait()


def _repository(path: Path) -> Path:
    """Return the model repository of a path: itself, a suggester's, or that of a bundle that passed its gate."""
    if any(path.glob("*/config.pbtxt")):
        return path
    own = path / "triton" / "python"
    return own if (own / "suggest" / "config.pbtxt").is_file() else Bundle.open(path).root / "triton" / "python"
