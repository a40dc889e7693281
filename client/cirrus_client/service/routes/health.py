"""`GET /healthz`, `GET /readyz` and `GET /metrics`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from cirrus_client import __version__
from cirrus_client.service.metrics import MEDIA_TYPE
from cirrus_client.service.models import Health, Readiness
from cirrus_client.service.openapi import PROBLEMS
from cirrus_client.service.routes.parts import json_answer, service

router = APIRouter(tags=["health"], responses=PROBLEMS)


@router.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """Say that the process answers."""
    return json_answer(Health(version=__version__))


@router.get("/readyz", response_model=Readiness)
async def readyz(request: Request) -> Response:
    """Say that every part is there and answers as the original did, or which stage does not."""
    return json_answer(await service(request).canaries.readiness())


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return the service's metrics for Prometheus."""
    running = service(request)
    versions = running.registry.versions()
    counts = await asyncio.to_thread(lambda: [version.count() for _, version in versions])
    text = running.metrics.text(versions, counts, running.canaries.cosines(), running.canaries.passed())
    return Response(text, media_type=MEDIA_TYPE)
