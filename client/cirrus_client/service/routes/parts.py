"""What endpoints get from the application, and how they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

if TYPE_CHECKING:
    from cirrus_client.service.app import Service


def service(request: Request) -> Service:
    """Return the running service."""
    running: Service = request.app.state.service
    return running


def json_answer(answer: BaseModel) -> Response:
    """Return a model as JSON, without validating again what was just made."""
    return Response(answer.model_dump_json(), media_type="application/json")
