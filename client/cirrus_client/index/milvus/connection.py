"""Connections to Milvus: one per address and process, and its errors as ours."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cirrus_client.errors import CirrusError, SearchIndexError, ServerTimeout, ServerUnavailable
from cirrus_client.extras import need
from cirrus_client.hosts import WITHOUT_PROXY, is_this_machine

TOKEN = "CIRRUS_MILVUS_TOKEN"
ADDRESS = "CIRRUS_MILVUS_URI"
READ_S = 30.0
WRITE_S = 60.0
FLUSH_S = 600.0
_CONNECT_S = 10.0
_UNAVAILABLE = 2
_clients: dict[tuple[int, str, str], Any] = {}
_connecting = threading.Lock()


def is_file(uri: str) -> bool:
    """Return whether an address is the file of an embedded Milvus, and not a server."""
    return "://" not in uri


def check_address(uri: str) -> None:
    """Raise SearchIndexError unless an address is a path or an http(s) URL of a host, without a password."""
    if is_file(uri):
        return
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SearchIndexError(
            f"{parts.scheme}://{parts.hostname or ''} is no address of Milvus: give a URL like http://localhost:19530, "
            "or a path"
        )
    if parts.username is not None or parts.password is not None:
        raise SearchIndexError(
            f"the address of {parts.hostname} has a user in it, which an index would keep: give it without, and "
            f"user:password, or a token, in {TOKEN}"
        )


def connected(uri: str, *, named: bool) -> Any:
    """Return a `MilvusClient` of an address. Threads share it.

    named: whether the user named the address. The token of the environment is not sent to one that an index names.
    Raises MissingPackage without pymilvus, ServerUnavailable if nothing answers there, SearchIndexError if it refuses.
    """
    pymilvus = need("pymilvus", "the index backend milvus")
    if is_file(uri):
        need("milvus_lite", f"Milvus in {uri}")
        uri = str(Path(uri).resolve())
        if not Path(uri).parent.is_dir():
            raise SearchIndexError(f"{uri}: there is no folder for the file", path=Path(uri))
    token = "" if is_file(uri) else _token(uri, named=named)
    for name in ("pymilvus", "milvus_lite"):  # they write a traceback to stderr for every error that they also raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    key = os.getpid(), uri, token
    with _connecting, reported(uri):
        if key not in _clients:
            is_here = is_file(uri) or is_this_machine(urlsplit(uri).hostname or "")
            options = dict([WITHOUT_PROXY]) if is_here else {}
            _clients[key] = pymilvus.MilvusClient(uri=uri, token=token, timeout=_CONNECT_S, grpc_options=options)
        return _clients[key]


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Raise what goes wrong in Milvus as an error of Cirrus that names its address.

    ServerUnavailable: nothing answers there. ServerTimeout: not in time. SearchIndexError: it refuses.
    """
    try:
        yield
    except Exception as error:
        ours = _ours(error, uri)
        if ours is None:
            raise
        raise ours from None


def _token(uri: str, *, named: bool) -> str:
    token = os.environ.get(TOKEN, "")
    if token and not named:
        raise SearchIndexError(
            f"the index names the Milvus at {uri}, and {TOKEN} is only sent to an address that you name: set {ADDRESS} "
            "as well"
        )
    return token


def _ours(error: Exception, uri: str) -> CirrusError | None:
    """Return an error of pymilvus, or of gRPC below it, as ours; None for one that is neither."""
    pymilvus, grpc = need("pymilvus", "the index backend milvus"), need("grpc", "the index backend milvus")
    if isinstance(error, pymilvus.exceptions.ConnectionConfigException) and is_file(uri):
        return SearchIndexError(
            f"{uri} can't be opened by Milvus: another process has it open, or it is no folder of Milvus; end that "
            "process, or give another path",
            path=Path(uri),
        )
    if isinstance(error, pymilvus.MilvusException):
        code, reason = error.code, error.message
    elif isinstance(error, grpc.RpcError):
        code, reason = error.code(), error.details()
    else:
        return None
    if code in (_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE):
        return ServerUnavailable(f"no Milvus answers at {uri}: start it, or name its address in {ADDRESS}", url=uri)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServerTimeout(f"Milvus at {uri} did not answer in time", url=uri)
    return SearchIndexError(f"Milvus at {uri} refused: {reason}")
