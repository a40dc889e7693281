"""Let in who may call: the right host and origin, a key, and not too often."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cirrus_client.errors import AccessDenied, CirrusError
from cirrus_client.hosts import is_loopback
from cirrus_client.service.door.keys import Keys
from cirrus_client.service.door.rate import RateLimit
from cirrus_client.service.problems import problem, problem_of

COOKIE = "cirrus-key"
SESSION = "/v1/session"
_OPEN = ("/healthz", "/readyz", "/openapi.json", SESSION)
_CLOSED = ("/v1/", "/v2/", "/knn-service", "/indices-list", "/metadata", "/metrics")
_PICTURE = "/image"  # a page loads dozens at once


@dataclass(frozen=True)
class Access:
    """Who may call.

    keys: without any, everybody may. only_loopback: refuse requests that name another host than this machine, as a
    web page does whose name was made to point here (DNS rebinding). origins: of pages elsewhere that may call.
    """

    keys: Keys = field(default_factory=lambda: Keys({}))
    only_loopback: bool = True
    origins: tuple[str, ...] = ()


class Gate:
    """ASGI middleware that refuses who may not call. The id of the key goes to `scope["state"]["key_id"]`."""

    def __init__(self, app: ASGIApp, access: Access, rate: RateLimit | None) -> None:
        self._app = app
        self._access = access
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with a problem."""
        if scope["type"] == "http":
            refused = self._refusal(scope)
            if refused is not None:
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        foreign = self._foreign(headers)
        if foreign is not None:
            return problem(scope, 403, kind="about:blank", detail=foreign, attributes={})
        try:
            caller = self._caller(scope, headers)
            if self._rate is not None and is_closed(scope["path"]) and not scope["path"].endswith(_PICTURE):
                self._rate.take(caller)
        except CirrusError as error:
            return problem_of(error, scope)
        return None

    def _foreign(self, headers: Headers) -> str | None:
        """Return why a request comes from a page elsewhere, or None."""
        host = headers.get("host", "")
        if self._access.only_loopback and not is_loopback(_name_of(f"//{host}") or ""):
            return f"this service answers on this machine alone, and not as {host!r}"
        origin = headers.get("origin")
        if origin is None or origin in self._access.origins or origin.partition("://")[2] == host:
            return None
        return (
            f"pages of {origin} may not call this service, which was asked as {host!r}: a proxy passes Host on, and "
            "--cors-origin lets other pages in"
        )

    def _caller(self, scope: Scope, headers: Headers) -> str:
        """Return the id of the caller's key, or its address if keys are not asked for. Raises AccessDenied."""
        client = scope.get("client")
        if not self._access.keys or not is_closed(scope["path"]):
            return client[0] if client else ""
        key = _presented(headers)
        found = None if key is None else self._access.keys.id_of(key)
        if found is None:
            what = "no API key" if key is None else "an API key that is not known"
            raise AccessDenied(f"the request has {what}: send it as 'Authorization: Bearer KEY'")
        scope["state"]["key_id"] = found
        return found


def is_closed(path: str) -> bool:
    """Return whether a path needs a key where there are some."""
    return path.startswith(_CLOSED) and path not in _OPEN


def _presented(headers: Headers) -> str | None:
    given = headers.getlist("authorization")
    if given:
        scheme, _, key = given[0].partition(" ")
        return key.strip() if scheme.lower() == "bearer" and len(given) == 1 else ""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
