"""`cirrus serve`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.bundle import Bundle
from cirrus_client.cli.console import echo
from cirrus_client.cli.options import check_images_root, refuse_given
from cirrus_client.cli.served import find_repository
from cirrus_client.extras import need
from cirrus_client.service.collection import Source
from cirrus_client.service.json_lines import JsonLines
from cirrus_client.service.limits import Limits
from cirrus_client.service.options import RemoteTriton, ServiceOptions, TritonOptions
from cirrus_client.telemetry import switch_off
from cirrus_client.triton.requests import check_address
from cirrus_client.triton.server import TritonServer, find_server

_LIMITS = Limits()
_PORTS = 65535
_NONE: list[str] = []
_OF_TRITON_HERE = ("http_port", "grpc_port", "metrics_port", "metrics_config", "trace_config")
_OF_TRITON = ("bundle", "host", "trust_network", *_OF_TRITON_HERE)


class LogFormat(StrEnum):
    """How log messages are written."""

    TEXT = "text"
    JSON = "json"


def serve(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="A bundle, a suggester, or what `cirrus repository` wrote.")],
    index: Annotated[
        Path | None,
        typer.Option("--index", "-i", help="An index of the bundle: serve searches and a page as well."),
    ] = None,
    collection: Annotated[
        list[str] | None,
        typer.Option(help="A further collection, NAME=BUNDLE,INDEX. A NAME that is taken adds a version to it."),
    ] = None,
    root: Annotated[str | None, typer.Option(help="Where the images are now, if not where they were embedded.")] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Encode in this process, without a Triton server.")
    ] = False,
    triton: Annotated[
        str | None,
        typer.Option(
            help="A Triton server that runs elsewhere and serves the bundle, host:port of gRPC: start none here."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; beyond loopback searches need API keys, Triton alone --trust-network."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=_PORTS, help="Port of the search service.")] = 8080,
    http_port: Annotated[int, typer.Option(min=1, max=_PORTS, help="Triton's port for HTTP requests.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=_PORTS, help="Triton's port for gRPC requests.")] = 8001,
    metrics_port: Annotated[
        int, typer.Option(min=1, max=_PORTS, help="Port of Triton's metrics for Prometheus, on loopback.")
    ] = 8002,
    trust_network: Annotated[
        bool, typer.Option("--trust-network", help="Everybody who reaches --host may take this server over.")
    ] = False,
    metrics_config: Annotated[
        list[str], typer.Option(help="Triton's option of this name, like histogram_latencies=true.")
    ] = _NONE,
    trace_config: Annotated[
        list[str], typer.Option(help="Triton's option of this name, like mode=opentelemetry.")
    ] = _NONE,
    api_keys_file: Annotated[Path | None, typer.Option(help="File of lines ID=KEY; searches need one of them.")] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            envvar="CIRRUS_API_KEYS", help="ID=KEY,ID=KEY; give it in the environment, where no other user sees it."
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without API keys: who reaches it may search.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may call the service, like https://shop.example.")
    ] = None,
    image_host: Annotated[
        list[str] | None, typer.Option(help="A host, or host:port, from which images named by a URL are fetched.")
    ] = None,
    suggester: Annotated[Path | None, typer.Option(help="A suggester of edit texts: run it in this process.")] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Largest body of a request.")] = _LIMITS.max_body_bytes,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of one image of a query.")] = _LIMITS.max_pixels,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Most queries that wait for the encoder; further ones are refused.")
    ] = _LIMITS.max_waiting,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Most requests per second of one key, or of one address.")
    ] = _LIMITS.rate,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Time limit of one request.")] = _LIMITS.timeout_s,
    memory_mib: Annotated[
        int, typer.Option(min=0, help="MiB of encoded images, texts and queries to keep per bundle; with --in-process.")
    ] = _LIMITS.memory_bytes // 2**20,
    warm: Annotated[
        bool, typer.Option("--warm", help="Encode the gallery's images ahead while nobody asks; with --in-process.")
    ] = False,
    canary_s: Annotated[float, typer.Option(min=1, help="Seconds between two replays of the canary.")] = 300.0,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="Where traces are sent by OTLP, like http://localhost:4318/v1/traces.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="json writes one object per line.")] = LogFormat.TEXT,
) -> None:
    """Serve a bundle with the Triton server of the nvidia-pytriton wheel, or searches of --index, until interrupted.

    With --index, a search API and a page are served as well.
    """
    switch_off()
    if index is None:
        of_searches = [parameter.name or "" for parameter in context.command.params]
        of_searches = [name for name in of_searches if name not in _OF_TRITON]
        refuse_given(context, of_searches, "it is about searches: give --index")
    else:
        refuse_given(context, ("trust_network",), "it is about Triton alone: leave out --index")
    check_images_root(root)
    if in_process or triton is not None:
        refuse_given(context, _OF_TRITON_HERE, "it is about the Triton server that is started here, and none is")
    if warm and not in_process:
        raise typer.BadParameter(
            "it needs --in-process: on Triton nothing is kept but whole answers", param_hint="--warm"
        )
    if in_process and triton is not None:
        raise typer.BadParameter("it encodes elsewhere, and --in-process here", param_hint="--triton")
    if triton is not None:
        check_address(triton)
    else:
        if not in_process:
            of_triton = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
            _check_distinct(of_triton if index is None else {"--port": port, **of_triton})
            find_server()
        need("onnxruntime", "cirrus serve")
    if index is not None:
        if log_format is LogFormat.JSON:
            for handler in logging.getLogger().handlers:
                handler.setFormatter(JsonLines())
        collections = _collections(bundle, index, root, collection or [])
        server: TritonOptions | RemoteTriton | None = None
        if triton is not None:
            server = RemoteTriton(triton)
        elif not in_process:
            server = TritonOptions(http_port, grpc_port, metrics_port, tuple(metrics_config), tuple(trace_config))
        _serve_searches(
            ServiceOptions(
                collections,
                host=host,
                port=port,
                triton=server,
                limits=Limits(max_body_bytes, max_pixels, max_waiting, rate, timeout_s, memory_mib * 2**20),
                api_keys=api_keys_file,
                listed_keys=api_keys,
                insecure=insecure,
                origins=tuple(cors_origin or ()),
                image_hosts=tuple(host.lower() for host in image_host or ()),
                suggester=suggester,
                canary_s=canary_s,
                otlp_endpoint=otlp_endpoint,
                warm=warm,
            )
        )
        return
    running = TritonServer(
        find_repository(bundle),
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        trust_network=trust_network,
        metrics_config=metrics_config,
        trace_config=trace_config,
    )
    with running:
        echo(
            f"{bundle} is served: gRPC {host}:{grpc_port}, HTTP {host}:{http_port}, "
            f"metrics http://127.0.0.1:{metrics_port}/metrics; log {running.log_path}; stop with Ctrl-C"
        )
        running.wait()


def _check_distinct(ports: Mapping[str, int]) -> None:
    for port in ports.values():
        equal = [option for option, other in ports.items() if other == port]
        if len(equal) > 1:
            raise typer.BadParameter(f"{port} is given to each of them", param_hint=", ".join(equal))


def _serve_searches(options: ServiceOptions) -> None:
    from cirrus_client.service.process import run_service  # needs the extra `service`, which Triton alone does not

    match options.triton:
        case None:
            where = "in this process"
        case RemoteTriton(url):
            where = f"on Triton, gRPC {url}"
        case TritonOptions(grpc=grpc):
            where = f"on Triton, gRPC 127.0.0.1:{grpc}"
    shown = f"[{options.host}]" if ":" in options.host else options.host
    run_service(
        options,
        announce=lambda: echo(
            f"{', '.join(options.collections)}: search at http://{shown}:{options.port}, encoded {where}; "
            "stop with Ctrl-C"
        ),
    )


def _collections(bundle: Path, index: Path, root: str | None, further: list[str]) -> dict[str, list[Source]]:
    collections = {Bundle.open(bundle).spec.name: [Source(bundle, index, root)]}
    for text in further:
        name, equals, folders = text.partition("=")
        parts = folders.split(",")
        if not (name and equals and len(parts) == 2 and all(parts)) or "@" in name or "/" in name:
            raise typer.BadParameter(f"{text!r} is not NAME=BUNDLE,INDEX", param_hint="--collection")
        collections.setdefault(name, []).append(Source(Path(parts[0]), Path(parts[1])))
    return collections
