"""The encoders of the service's bundles: in this process, on Triton servers that it starts and stops, or on another."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from cirrus_client.bundle import Bundle
from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.remembering import RememberingEncoder
from cirrus_client.errors import CirrusError, ServerUnavailable
from cirrus_client.names import EnsembleName, Flavour
from cirrus_client.service.collection import Source, Version, open_version
from cirrus_client.service.encoding import LocalQueries, QueryEncoder, TritonQueries
from cirrus_client.service.limits import Limits
from cirrus_client.service.metrics import Metrics
from cirrus_client.service.options import RemoteTriton, TritonOptions
from cirrus_client.triton.cancellation import survives_cancellation
from cirrus_client.triton.channel import has_model, is_ready
from cirrus_client.triton.encoder import AsyncTritonEncoder
from cirrus_client.triton.listening import are_free
from cirrus_client.triton.repository import REPOSITORIES
from cirrus_client.triton.served_names import ServedNames
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_client.triton.wire import served_name

_LONGER_S = 60.0
_STARTS_WITHIN_S = 300.0
_LOOPBACK, _LARGEST_PORT = "127.0.0.1", 65_535
log = logging.getLogger(__name__)


class Encoders:
    """Opens versions of collections, each with an encoder. Versions of one bundle share one.

    A Triton server is stopped when the last version that uses it is gone, and all of them at the end of a `with` block.
    It dies with the thread that called `open`: that thread must live as long as the service.
    """

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        *,
        triton: TritonOptions | RemoteTriton | None,
        engine: str | None = None,
    ) -> None:
        """Keep the options. triton: see `ServiceOptions`. engine: see `LocalEncoder`."""
        self._limits = limits
        self._metrics = metrics
        self._triton = triton
        self._engine = engine
        self._servers: list[TritonServer] = []
        self._known: weakref.WeakValueDictionary[str, QueryEncoder] = weakref.WeakValueDictionary()

    def open(self, source: Source) -> Version:
        """Open the bundle and the index of a source, and start what encodes its queries, unless it runs already.

        Raises BundleError, SearchIndexError or SpaceMismatch for what is on disk, EngineError, and what
        `TritonServer.start` raises.
        """
        state = source.state()  # read first: what is replaced from now on is newer
        bundle = Bundle.open(source.bundle)
        key = f"{bundle.root.resolve()}\0{bundle.spec.model_dump_json()}"
        encoder = self._known.get(key) or self._started(bundle)
        self._known[key] = encoder
        return open_version(source, state, bundle, encoder, max_pixels=self._limits.max_pixels)

    def revive(self) -> bool:
        """Start Triton servers again that ended by themselves, and return whether one was.

        One that can't be started is logged, and tried again by the next call. See the class about the calling thread.
        """
        revived = False
        for server in [server for server in self._servers if not server.is_running]:
            log.error("tritonserver at %s has ended; it is started again", server.grpc_url)
            server.stop()
            try:
                server.start()
                revived = True
            except (CirrusError, OSError) as error:
                log.error("tritonserver at %s: %s", server.grpc_url, error)
        return revived

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in list(self._servers):
            server.stop()

    def _started(self, bundle: Bundle) -> QueryEncoder:
        if self._triton is None:
            local = LocalEncoder(bundle, engine=self._engine, observe=self._metrics.graph)
            _load_graphs(local)
            remembering = RememberingEncoder(
                local, max_bytes=self._limits.memory_bytes, observe=self._metrics.looked_up
            )
            return LocalQueries(remembering, max_waiting=self._limits.max_waiting, observe=self._metrics.batch)
        if isinstance(self._triton, RemoteTriton):
            return self._on_triton(self._triton.url, bundle, shared=_wait_for(self._triton.url, bundle.spec.name))
        server = self._server(bundle, self._triton)
        server.start()
        self._servers.append(server)
        queries = self._on_triton(server.grpc_url, bundle, shared=False)
        weakref.finalize(queries, _in_a_thread(partial(self._stop, server)))
        return queries

    def _on_triton(self, url: str, bundle: Bundle, *, shared: bool) -> TritonQueries:
        cancels = survives_cancellation(url)
        # a time-out is a cancellation: the server's own, of its queue, comes first
        patience_s = self._limits.timeout_s if cancels else self._limits.timeout_s + _LONGER_S
        encoder = AsyncTritonEncoder(url, bundle=bundle.spec.name if shared else None, timeout_s=patience_s)
        encoder.expect(bundle.spec.space)
        names = ServedNames(bundle.spec, shared)
        return TritonQueries(encoder, names=names, max_waiting=self._limits.max_waiting, cancels=cancels)

    def _stop(self, server: TritonServer) -> None:
        self._servers.remove(server)
        server.stop()

    def _ports(self, first: TritonOptions) -> Sequence[int]:
        """Return the ports of the next server: the given ones, or of a further one the next three, or three more."""
        given = (first.http, first.grpc, first.metrics)
        if not self._servers:
            return given
        further = (tuple(port + step for port in given) for step in range(0, _LARGEST_PORT - max(given), len(given)))
        return next((ports for ports in further if are_free(_LOOPBACK, ports)), None) or free_ports(len(given))

    def _server(self, bundle: Bundle, first: TritonOptions) -> TritonServer:
        http, grpc, metrics = self._ports(first)
        repository = bundle.root / REPOSITORIES / Flavour.PYTHON
        return TritonServer(
            repository,
            http_port=http,
            grpc_port=grpc,
            metrics_port=metrics,
            metrics_config=first.metrics_config,
            trace_config=first.trace_config,
        )


def _wait_for(url: str, bundle: str) -> bool:
    """Return, when a server is ready and has a bundle, whether it has others as well.

    Raises ServerUnavailable if it is not within five minutes.
    """
    alone, among = (served_name(EnsembleName.ENCODE_TARGET, name) for name in (None, bundle))
    until = time.monotonic() + _STARTS_WITHIN_S
    while True:
        if is_ready(url):
            for model in (alone, among):
                if has_model(url, model):
                    return model == among
        if time.monotonic() > until:
            raise ServerUnavailable(
                f"the Triton server at {url} was not ready within {_STARTS_WITHIN_S:.0f} s, with a model {alone!r} or "
                f"{among!r}"
            )
        log.info("waiting for the Triton server at %s", url)
        time.sleep(1)


def _load_graphs(encoder: LocalEncoder) -> None:
    """Load the graphs of queries now, so that the first query does not wait for them."""
    for name, ensemble in encoder.bundle.spec.ensembles.items():
        if name is not EnsembleName.ENCODE_TARGET:
            for step in ensemble.steps:
                if step.model in encoder.bundle.spec.graphs:
                    encoder.graph(step.model)


def _in_a_thread(stop: Callable[[], None]) -> Callable[[], None]:
    return lambda: threading.Thread(target=stop, daemon=True).start()
