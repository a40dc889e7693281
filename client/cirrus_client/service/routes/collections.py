"""`GET /v1/collections`, and how a collection is replaced."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cirrus_client.service.body import read_json
from cirrus_client.service.models import Asked, CollectionInfo, Collections
from cirrus_client.service.openapi import PROBLEMS, body
from cirrus_client.service.routes.parts import json_answer, service

router = APIRouter(tags=["collections"], responses=PROBLEMS)


class SwitchRequest(Asked):
    """The space of the version that is to answer: the start of its fingerprint."""

    space: str = Field(min_length=4, max_length=64)


@router.get("/v1/collections", response_model=Collections)
async def collections(request: Request) -> Response:
    """Return what is served: recipe, precision, space, size, columns, fidelity."""
    infos = await asyncio.gather(*(_info(request, name) for name in service(request).registry.names()))
    return json_answer(Collections(collections=infos))


@router.post("/v1/collections/{name}/reload", response_model=CollectionInfo)
async def reload(request: Request, name: str) -> Response:
    """Open the collection's folders again, and serve what is in them now. Requests under way end on the old version."""
    await service(request).registry.reload(name)
    return json_answer(await _info(request, name))


@router.post("/v1/collections/{name}/switch", response_model=CollectionInfo, openapi_extra=body(SwitchRequest))
async def switch(request: Request, name: str) -> Response:
    """Let the version of another space answer the requests that name no space."""
    wanted = await read_json(request, SwitchRequest)
    service(request).registry.switch(name, wanted.space)
    return json_answer(await _info(request, name))


async def _info(request: Request, name: str) -> CollectionInfo:
    suggest = service(request).suggester is not None
    return await asyncio.to_thread(service(request).registry.info, name, suggest=suggest)
