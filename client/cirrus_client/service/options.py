"""What `cirrus serve` is told about the search service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cirrus_client.service.collection import Source
from cirrus_client.service.limits import Limits


@dataclass(frozen=True)
class TritonOptions:
    """The ports of the first Triton server, on loopback; a further one takes the next three that are free.

    metrics_config, trace_config: see `TritonServer`.
    """

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    metrics_config: tuple[str, ...] = ()
    trace_config: tuple[str, ...] = ()


@dataclass(frozen=True)
class RemoteTriton:
    """A Triton server that runs elsewhere and serves every bundle of the service. url: host:port of gRPC."""

    url: str


@dataclass(frozen=True)
class ServiceOptions:
    """What is served, and how.

    collections: the sources of each, by name; the first source is active. triton: how Triton servers are started, or
    the one that is there; None encodes in this process. engine: see `LocalEncoder`. api_keys, listed_keys: see
    `read_keys`. insecure: listen beyond loopback without keys. origins: of pages elsewhere that may call (CORS).
    image_hosts: see `ImageReader`. suggester: the folder of one, or None.
    canary_s: how often the canaries are replayed.
    otlp_endpoint: see `OpenTelemetry`. warm: encode galleries' images ahead; see `keep_warm`.
    """

    collections: Mapping[str, Sequence[Source]]
    host: str = "127.0.0.1"
    port: int = 8080
    triton: TritonOptions | RemoteTriton | None = None
    engine: str | None = None
    limits: Limits = field(default_factory=Limits)
    api_keys: Path | None = None
    listed_keys: str | None = None
    insecure: bool = False
    origins: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    suggester: Path | None = None
    canary_s: float = 300.0
    otlp_endpoint: str | None = None
    warm: bool = False
