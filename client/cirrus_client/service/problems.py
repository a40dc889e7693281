"""Errors as problem documents (RFC 9457), with the attributes of the typed error."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from cirrus_client import errors
from cirrus_client.errors import CirrusError

URN = "urn:cirrus:"
MEDIA_TYPE = "application/problem+json"
_OPENAI = ("/v1/embeddings", "/v1/models")
_RETRY_AFTER_S = 1

_STATUS: dict[type[CirrusError], int] = {
    errors.InvalidInput: 422,
    errors.UnreadableImage: 404,
    errors.SpaceMismatch: 409,
    errors.InvalidRequest: 422,
    errors.InvalidFilter: 422,
    errors.LimitExceeded: 413,
    errors.UnknownCollection: 404,
    errors.UnknownItem: 404,
    errors.AccessDenied: 401,
    errors.TooManyRequests: 429,
    errors.NotReady: 503,
    errors.ServerOverloaded: 429,
    errors.ServerUnavailable: 503,
    errors.ServerTimeout: 504,
    errors.ServerError: 502,
    errors.StoredDataError: 503,
    errors.EngineError: 503,
    errors.CirrusError: 503,
}
_PRIVATE = {"path", "url"}
"""Attributes that stay in the log: they name files and machines of the service."""

_WITHHELD: tuple[type[CirrusError], ...] = (
    errors.UnreadableImage,
    errors.SpaceMismatch,
    errors.StoredDataError,
    errors.ServerError,
    errors.EngineError,
    errors.OutputError,
)
"""Errors whose messages name files and machines: the answer says what happened, and the log says where."""


def status_of(error: CirrusError) -> int:
    """Return the HTTP status of an error."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def is_for_the_log(error: CirrusError) -> bool:
    """Return whether the log says what happened: a fault of the service, or what an answer withholds."""
    return status_of(error) >= HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(error, _WITHHELD)


def problem(scope: Scope, status: int, *, kind: str, detail: str, attributes: Mapping[str, Any]) -> JSONResponse:
    """Return a problem document. kind: the name of the error, or "about:blank" for one of HTTP itself.

    The endpoints of OpenAI's API answer plain JSON with OpenAI's member `error` as well, since its clients read that.
    """
    body = {
        "type": kind if kind == "about:blank" else f"{URN}{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **attributes,
        "request_id": request_id(scope),
    }
    media_type = MEDIA_TYPE
    if scope["path"].startswith(_OPENAI):
        body["error"] = {"message": detail, "type": kind, "param": None, "code": None}
        media_type = "application/json"
    headers = {"Retry-After": str(attributes.get("retry_after_s", _RETRY_AFTER_S))} if status in (429, 503) else {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers, media_type)


def problem_of(error: CirrusError, scope: Scope) -> JSONResponse:
    """Return the problem document of a typed error. Paths and addresses of this machine are left out."""
    detail = str(error)
    attributes = {
        name: value for name, value in vars(error).items() if name not in _PRIVATE and not name.startswith("_")
    }
    if isinstance(error, _WITHHELD):
        detail = f"{type(error).__name__}: see the service's log for request {request_id(scope)}"
        attributes.pop("reason", None)
    return problem(scope, status_of(error), kind=type(error).__name__, detail=detail, attributes=attributes)


def request_id(scope: Scope) -> str | None:
    """Return the id by which the log names a request."""
    found: str | None = scope.get("state", {}).get("request_id")
    return found
