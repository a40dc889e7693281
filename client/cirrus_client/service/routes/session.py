"""`POST /v1/session`: a browser keeps the key in a cookie that no script can read, so that images load too."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cirrus_client.errors import AccessDenied
from cirrus_client.service.body import read_json
from cirrus_client.service.door.gate import COOKIE
from cirrus_client.service.models import Asked
from cirrus_client.service.openapi import PROBLEMS, body
from cirrus_client.service.routes.parts import service

router = APIRouter(tags=["session"], responses=PROBLEMS)


class SessionRequest(Asked):
    """An API key."""

    key: str = Field(max_length=512)


@router.post("/v1/session", status_code=204, openapi_extra=body(SessionRequest))
async def session(request: Request) -> Response:
    """Keep an API key in a cookie, until the browser is closed. It is sent to what is beside this path alone."""
    wanted = await read_json(request, SessionRequest)
    keys = service(request).access.keys
    if keys and keys.id_of(wanted.key) is None:
        raise AccessDenied("this API key is not known")
    answer = Response(status_code=204)
    if keys:
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, wanted.key, path=None, httponly=True, samesite="strict", secure=secure)
    return answer
