"""Run the service: start the encoders, open the collections, listen, and stop all of it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType

import uvicorn

from cirrus_client.errors import ServerError
from cirrus_client.hosts import is_loopback
from cirrus_client.service.addresses import check_endpoint, check_host, check_origin
from cirrus_client.service.app import Service, create_app
from cirrus_client.service.door.gate import Access
from cirrus_client.service.door.keys import read_keys
from cirrus_client.service.encoders import Encoders
from cirrus_client.service.fetch import ImageReader
from cirrus_client.service.metrics import Metrics
from cirrus_client.service.options import ServiceOptions
from cirrus_client.service.readiness import Canaries
from cirrus_client.service.registry import WATCH_S, Registry
from cirrus_client.service.suggestions import Suggestions
from cirrus_client.service.tracing import OpenTelemetry
from cirrus_client.service.warming import keep_warm
from cirrus_client.suggest import LocalSuggester
from cirrus_client.triton.listening import listening

_GRACE_S = 10
_KEEP_ALIVE_S = 75
"""Longer than a load balancer keeps an idle connection (60 s), so that it never sends a request into a closed one."""
log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_service(options: ServiceOptions, *, announce: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal ends it. announce: is called when everything is ready.

    Raises ServerError if a port is taken, everybody could call, or an address is none, and what opening the
    collections raises.
    """
    for origin in options.origins:
        check_origin(origin)
    for host in options.image_hosts:
        check_host(host)
    if options.otlp_endpoint is not None:
        check_endpoint(options.otlp_endpoint)
    access = _access(options)
    metrics = Metrics()
    tracer = None if options.otlp_endpoint is None else OpenTelemetry(options.otlp_endpoint)
    address = listening(options.host, options.port)
    with address, Encoders(options.limits, metrics, triton=options.triton, engine=options.engine) as encoders:
        registry = Registry(encoders.open)
        for name, sources in options.collections.items():
            registry.add(name, sources)
        images = ImageReader(max_bytes=options.limits.max_body_bytes, hosts=options.image_hosts)
        suggester = None if options.suggester is None else LocalSuggester(options.suggester)
        suggestions = None if suggester is None else Suggestions(suggester)

        @asynccontextmanager
        async def opening() -> AsyncIterator[Service]:
            canaries = Canaries(registry, suggester)
            await canaries.replay()
            async with asyncio.TaskGroup() as tasks:
                lasting = [
                    tasks.create_task(_lasting(run))
                    for run in (
                        lambda: registry.watch(WATCH_S),
                        lambda: registry.look_after(encoders.revive, canaries.forget, WATCH_S),
                        lambda: canaries.keep_on(options.canary_s),
                        *((lambda: keep_warm(registry),) if options.warm else ()),
                    )
                ]
                yield Service(registry, canaries, metrics, options.limits, access, images, suggestions)
                for task in lasting:
                    task.cancel()
            await registry.close()

        config = uvicorn.Config(
            create_app(opening, limits=options.limits, access=access, metrics=metrics, tracer=tracer),
            http="h11",  # reads 64 KiB of headers at most; httptools, which other packages may install, any number
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
            lifespan="on",
        )
        try:
            _Server(config, announce).run([address])
        finally:
            if tracer is not None:
                tracer.close()


async def _lasting(run: Callable[[], Awaitable[None]]) -> None:
    """Run what lasts until it is cancelled. A defect in it is logged, and it goes on."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("a defect of Cirrus")
            await asyncio.sleep(WATCH_S)


class _Server(uvicorn.Server):
    """Ends cleanly on SIGHUP as well, unless it is ignored, and raises the signal again when everything is closed."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce
        self._ended_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._ended_by = sig
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._ended_by is not None:
            signal.raise_signal(self._ended_by)


def _access(options: ServiceOptions) -> Access:
    keys = read_keys(options.api_keys, options.listed_keys)
    loopback = is_loopback(options.host)
    if not (loopback or keys or options.insecure):
        raise ServerError(
            f"can't listen on {options.host} without API keys: give --api-keys-file, or say --insecure if everybody "
            "who reaches it may search"
        )
    return Access(keys, only_loopback=loopback and not keys and not options.insecure, origins=options.origins)
