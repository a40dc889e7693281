"""`GET /healthz`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from cirrus_client import __version__
from cirrus_client.service.models import Health
from cirrus_client.service.openapi import PROBLEMS
from cirrus_client.service.routes.parts import json_answer

router = APIRouter(tags=["health"], responses=PROBLEMS)


@router.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """Say that the process answers."""
    return json_answer(Health(version=__version__))
