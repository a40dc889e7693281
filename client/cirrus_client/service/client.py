"""Ask a search service: `SearchClient`, and `AsyncSearchClient` for asyncio. Both need the extra `service`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from cirrus_client import errors
from cirrus_client.errors import (
    CirrusError,
    InvalidInput,
    InvalidRequest,
    MissingPackage,
    ServerError,
    ServerTimeout,
    ServerUnavailable,
)
from cirrus_client.extras import need
from cirrus_client.forks import MadeHere
from cirrus_client.hosts import is_this_machine
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.service.models import CollectionInfo, Collections, ItemAnswer, SearchAnswer
from cirrus_client.service.urls import check_url, failure, without_password

if TYPE_CHECKING:
    import httpx2

_URN = "urn:cirrus:"
_JSON = {"Content-Type": "application/json"}
T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """One query. image: the bytes of a file, its path, or a PIL image. id: a gallery item in the place of an image."""

    image: ImageInput | None = None
    text: str | None = None
    id: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the query as the service takes it. Raises InvalidImage or UnreadableImage."""
        image = None if self.image is None else base64.b64encode(image_bytes(self.image)).decode()
        return {"image": image, "id": self.id, "text": self.text}


class _Client:
    """What both clients share: the address, the key, requests and typed errors."""

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 60.0) -> None:
        """See `SearchClient`."""
        check_url(url)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidInput("the API key has characters that no header can have: give it as the service lists it")
        if not 0 < timeout_s < TIMEOUT_MAX:
            raise InvalidInput(f"timeout_s is {timeout_s}: give the seconds that one request may take, more than 0")
        need("httpx2", "SearchClient")
        self.url = without_password(url.rstrip("/"))
        self._made_here: MadeHere | None = None
        host = urlsplit(url).hostname or ""
        self._options: dict[str, Any] = {
            # this machine is asked directly, whatever proxy the environment names
            "mounts": {f"all://{f'[{host}]' if ':' in host else host}": None} if is_this_machine(host) else {},
            "base_url": url.rstrip("/"),
            "timeout": timeout_s,
            "headers": {} if key is None else {"Authorization": f"Bearer {key}"},
        }

    def _check_usable(self, closed: bool) -> None:
        """Raise ServerError if the client was closed, or used before a fork, after which both share its sockets."""
        if closed:
            raise ServerError(f"the client of {self.url} was closed: open another one", url=self.url)
        self._made_here = self._made_here or MadeHere(f"a connection to {self.url}")
        self._made_here.check(ServerError)

    def _checked(self, answer: httpx2.Response) -> bytes:
        """Return an answer's body. Raises the typed error of a problem document."""
        if answer.is_success:
            return answer.content
        try:
            problem = answer.json()
            kind = getattr(errors, str(problem["type"]).removeprefix(_URN), None)
        except (ValueError, LookupError, TypeError):
            problem, kind = {}, None
        if isinstance(kind, type) and issubclass(kind, CirrusError):
            raise _typed(kind, problem)
        detail = problem.get("detail") if isinstance(problem, dict) else None
        other = f"{answer.reason_phrase}, from a proxy before it or a server that is no search service"
        raise ServerError(f"{self.url} answered with status {answer.status_code}: {detail or other}", url=self.url)

    def _failed(self, error: Exception) -> CirrusError:
        """Return the typed error of a request that got no answer, or one that can't be read."""
        import httpx2

        if isinstance(error, httpx2.InvalidURL):
            return InvalidInput(f"this is no link of the service ({error}): give the `image` of a found item")
        if not isinstance(error, httpx2.TransportError):
            return ServerError(f"{self.url} answered with a body that can't be unpacked: {error}", url=self.url)
        kind = ServerTimeout if "Timeout" in type(error).__name__ else ServerUnavailable
        return kind(f"the search service at {self.url} does not answer: {failure(error)}", url=self.url)

    def _opened(self, kind: Callable[..., T]) -> T:
        """Open an HTTP client.

        Raises ServerError if the certificates that it would trust can't be read, or the environment names a proxy that
        is none, and MissingPackage for a proxy of SOCKS without its package.
        """
        import httpx2

        try:
            return kind(**self._options)
        except ImportError:
            raise MissingPackage(
                "the environment names a SOCKS proxy (ALL_PROXY, HTTP_PROXY or HTTPS_PROXY), which needs a package: "
                "pip install socksio, or unset the variable",
                package="socksio",
                requirement="socksio",
            ) from None
        except (ValueError, httpx2.InvalidURL) as error:
            raise ServerError(
                f"the proxy that ALL_PROXY, HTTP_PROXY or HTTPS_PROXY names can't be used: {error}", url=self.url
            ) from None
        except OSError as error:  # of a file; what is no certificate is an SSLError, which is an OSError
            raise ServerError(
                f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names can't be read: {error.strerror or error}",
                url=self.url,
            ) from None

    def _parsed(self, kind: type[Any], content: bytes) -> Any:
        try:
            return kind.model_validate_json(content)
        except ValidationError:
            raise ServerError(f"{self.url} does not answer as a search service of Cirrus does", url=self.url) from None


class SearchClient(_Client):
    """Asks a search service. Threads may share it. `close`, or the end of a `with` block, closes its connections."""

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 60.0) -> None:
        """Name the service; nothing is contacted yet.

        url: like http://127.0.0.1:8080. key: an API key. timeout_s: time limit of one request. Raises ServerError if
        the url is none, InvalidInput for a key or time limit that is none, MissingPackage without the extra `service`.
        """
        super().__init__(url, key=key, timeout_s=timeout_s)
        import httpx2

        self._http = self._opened(httpx2.Client)

    def search(
        self,
        *,
        image: ImageInput | None = None,
        text: str | None = None,
        id: str | None = None,
        k: int = 10,
        **options: Any,
    ) -> SearchAnswer:
        """Search with one query. options: further fields of `SearchRequest`, like filter and collection.

        Raises the service's typed errors, ServerUnavailable, ServerTimeout or ServerError; the last also for a client
        that was closed, or used before this process was forked.
        """
        return self.search_many([Query(image, text, id)], k=k, **options)

    def search_many(self, queries: Sequence[Query], *, k: int = 10, **options: Any) -> SearchAnswer:
        """Search with several queries in one call; see `search`."""
        answer: SearchAnswer = self._parsed(
            SearchAnswer, self._call("POST", "/v1/search", _search(queries, k, options))
        )
        return answer

    def collections(self) -> list[CollectionInfo]:
        """Return what is served."""
        answer: Collections = self._parsed(Collections, self._call("GET", "/v1/collections"))
        return answer.collections

    def item(self, id: str, *, collection: str | None = None) -> ItemAnswer:
        """Return a gallery item. Raises UnknownItem."""
        answer: ItemAnswer = self._parsed(ItemAnswer, self._call("GET", f"/v1/items/{_quoted(id)}", None, collection))
        return answer

    def image(self, link: str) -> bytes:
        """Return the image file behind the `image` of a found item.

        Raises InvalidInput for a link that is none of the service's own, to which a key would be sent.
        """
        return self._call("GET", _own(link))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, body: object = None, collection: str | None = None) -> bytes:
        import httpx2

        self._check_usable(self._http.is_closed)
        content = None if body is None else _json(body)
        try:
            answer = self._http.request(method, path, content=content, headers=_JSON, params=_parameters(collection))
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise self._failed(error) from None
        return self._checked(answer)


class AsyncSearchClient(_Client):
    """`SearchClient` for asyncio: the same methods as coroutines. Tasks of one event loop may share it."""

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 60.0) -> None:
        """See `SearchClient`."""
        super().__init__(url, key=key, timeout_s=timeout_s)
        import httpx2

        self._http = self._opened(httpx2.AsyncClient)

    async def search(
        self,
        *,
        image: ImageInput | None = None,
        text: str | None = None,
        id: str | None = None,
        k: int = 10,
        **options: Any,
    ) -> SearchAnswer:
        """See `SearchClient.search`."""
        return await self.search_many([Query(image, text, id)], k=k, **options)

    async def search_many(self, queries: Sequence[Query], *, k: int = 10, **options: Any) -> SearchAnswer:
        """See `SearchClient.search_many`."""
        content = await self._call("POST", "/v1/search", _search(queries, k, options))
        answer: SearchAnswer = self._parsed(SearchAnswer, content)
        return answer

    async def collections(self) -> list[CollectionInfo]:
        """See `SearchClient.collections`."""
        answer: Collections = self._parsed(Collections, await self._call("GET", "/v1/collections"))
        return answer.collections

    async def item(self, id: str, *, collection: str | None = None) -> ItemAnswer:
        """See `SearchClient.item`."""
        content = await self._call("GET", f"/v1/items/{_quoted(id)}", None, collection)
        answer: ItemAnswer = self._parsed(ItemAnswer, content)
        return answer

    async def image(self, link: str) -> bytes:
        """See `SearchClient.image`."""
        return await self._call("GET", _own(link))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: str, path: str, body: object = None, collection: str | None = None) -> bytes:
        import httpx2

        self._check_usable(self._http.is_closed)
        content = None if body is None else _json(body)
        try:
            answer = await self._http.request(
                method, path, content=content, headers=_JSON, params=_parameters(collection)
            )
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise self._failed(error) from None
        return self._checked(answer)


def _json(body: object) -> bytes:
    """Return a body as JSON. Filters may be models, dates and numbers those of Python and NumPy."""
    try:
        plain = to_jsonable_python(body, by_alias=True, fallback=_number, inf_nan_mode="constants")
        return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"the request can't be said in JSON: {error}") from None


def _number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _own(link: str) -> str:
    if not link.startswith("/"):
        raise InvalidInput(f"{link} is no link of the service: give the `image` of a found item")
    return link


def _search(queries: Sequence[Query], k: int, options: Mapping[str, Any]) -> dict[str, Any]:
    bodies = []
    for position, query in enumerate(queries):
        try:
            bodies.append(query.body())
        except errors.ItemError as error:
            raise error.at("query", position) from None
    return {"queries": bodies, "k": k, **options}


def _parameters(collection: str | None) -> dict[str, str] | None:
    return None if collection is None else {"collection": collection}


def _quoted(id: str) -> str:
    try:
        return quote(id, safe="")
    except UnicodeEncodeError:
        raise InvalidRequest(f"the id {id!r} is not valid Unicode") from None


def _typed(kind: type[CirrusError], problem: Mapping[str, Any]) -> CirrusError:
    """Return the error that a problem document stands for, with its attributes."""
    detail = str(problem.get("detail"))
    if issubclass(kind, InvalidInput):
        return kind(str(problem.get("reason")), item=problem.get("item"), position=problem.get("position"))
    error = kind.__new__(kind, detail)
    CirrusError.__init__(error, detail)
    known = {"type", "title", "status", "detail", "error"}
    for name, value in problem.items():
        if name not in known:
            setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error
