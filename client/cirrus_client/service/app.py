"""The service as an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from cirrus_client import __version__
from cirrus_client.cores import usable_cores
from cirrus_client.errors import CirrusError, InvalidRequest
from cirrus_client.service import openapi
from cirrus_client.service.door.flow import Flow
from cirrus_client.service.door.gate import Access, Gate
from cirrus_client.service.door.head import AnswersHead
from cirrus_client.service.door.headers import SafeHeaders
from cirrus_client.service.door.journal import Journal
from cirrus_client.service.door.rate import RateLimit
from cirrus_client.service.fetch import ImageReader
from cirrus_client.service.limits import Limits
from cirrus_client.service.metrics import Metrics
from cirrus_client.service.problems import is_for_the_log, problem, problem_of, request_id
from cirrus_client.service.readiness import Canaries
from cirrus_client.service.registry import Registry
from cirrus_client.service.routes import (
    clip_retrieval,
    cohere,
    collections,
    health,
    items,
    openai,
    search,
    session,
    suggest,
)
from cirrus_client.service.suggestions import Suggestions
from cirrus_client.service.tracing import PassOn, Tracer

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What the endpoints use. pictures: threads of their own, so that a page of thumbnails keeps no search waiting."""

    registry: Registry
    canaries: Canaries
    metrics: Metrics
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    images: ImageReader = field(default_factory=lambda: ImageReader(max_bytes=Limits().max_body_bytes))
    suggester: Suggestions | None = None
    pictures: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(usable_cores(), "pictures"))


Opening = Callable[[], AbstractAsyncContextManager[Service]]
"""Opens what a service needs, in its event loop, and closes it at the end."""


def create_app(
    opening: Opening, *, limits: Limits, access: Access, metrics: Metrics, tracer: Tracer | None = None
) -> FastAPI:
    """Return the application.

    opening: is entered when the server starts, before the first request is taken. tracer: None tells nobody.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opening() as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="Cirrus search",
        version=__version__,
        summary="Composed image search: an image, but as the text says.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        generate_unique_id_function=openapi.operation_id,
    )
    for routes in (search, items, collections, suggest, openai, cohere, clip_retrieval, session, health):
        app.include_router(routes.router)
    app.add_exception_handler(CirrusError, _typed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _defect)
    openapi.complete(app, keys=bool(access.keys))
    app.add_middleware(AnswersHead)
    app.add_middleware(Flow, limits=limits)
    app.add_middleware(Gate, access=access, rate=None if limits.rate is None else RateLimit(limits.rate))
    if access.origins:
        app.add_middleware(CORSMiddleware, allow_origins=access.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(SafeHeaders)
    app.add_middleware(Journal, metrics=metrics, tracer=tracer or PassOn())
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """Serve the page's files, each by a route of its own, so that other paths keep their methods and errors."""
    files = StaticFiles(directory=PAGE, follow_symlink=True)
    for path in sorted(PAGE.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(PAGE))
            app.add_route(
                "/" if name == INDEX else f"/{name}", partial(_page_file, files, name), include_in_schema=False
            )


async def _page_file(files: StaticFiles, name: str, request: Request) -> Response:
    return await files.get_response(name, request.scope)


async def _typed(request: Request, error: Exception) -> Response:
    assert isinstance(error, CirrusError)
    metrics: Metrics = request.app.state.service.metrics
    metrics.rejected(error)
    if is_for_the_log(error):
        log.error("request %s: %s: %s", request_id(request.scope), type(error).__name__, error)
    return problem_of(error, request.scope)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field_ = ".".join(str(part) for part in first["loc"][1:]) or None
    return problem_of(InvalidRequest(f"the request: {field_}: {first['msg']}", field=field_), request.scope)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = problem(request.scope, error.status_code, kind="about:blank", detail=str(error.detail), attributes={})
    answer.headers.update(error.headers or {})
    return answer


async def _defect(request: Request, error: Exception) -> Response:
    log.error("request %s: a defect of Cirrus", request_id(request.scope), exc_info=error)
    return problem(request.scope, 500, kind="about:blank", detail="a defect of Cirrus; see its log", attributes={})
