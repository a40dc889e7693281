"""Turn the text of an image into its bytes: base64, a data URI, or a web address of an allowed host."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urljoin, urlsplit

import httpx2

from cirrus_client.errors import InvalidImage
from cirrus_client.service.addresses import DEFAULT_PORTS

_TIMEOUT_S = 10.0
_REDIRECTS = 3


class ImageReader:
    """Reads images that requests hold as text. Tasks of one event loop may share it.

    A web address is fetched only if its host is allowed. Every redirect is checked again. A host that is allowed by
    its name must have no address but public ones, and the connection goes to the address that was checked. A host that
    is allowed by its number, like 10.0.0.5, may be private.
    """

    def __init__(self, *, max_bytes: int, hosts: Collection[str] = ()) -> None:
        """Keep the limits. hosts: names or addresses, in lower case, with the port unless it is the scheme's."""
        self._max_bytes = max_bytes
        self._hosts = frozenset(hosts)

    async def read(self, text: str) -> bytes:
        """Return the bytes of an image. Raises InvalidImage."""
        if text.startswith("data:"):
            return from_data_uri(text)
        if text[:8].lower().startswith(("http://", "https://")):
            return await self._fetched(text)
        return _from_base64(text)

    async def _fetched(self, url: str) -> bytes:
        if not self._hosts:
            raise InvalidImage("it is a web address, and the service fetches nothing: send the file, in base64")
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                for _ in range(_REDIRECTS + 1):
                    found = await self._once(url)
                    if isinstance(found, bytes):
                        return found
                    url = urljoin(url, found)
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError, ValueError) as error:
            raise InvalidImage(f"its web address can't be fetched: {type(error).__name__}") from None
        raise InvalidImage(f"its web address leads on more than {_REDIRECTS} times")

    async def _once(self, url: str) -> bytes | str:
        """Return the body of a web address, or where it leads on to."""
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
        port = parts.port or DEFAULT_PORTS.get(scheme, 0)
        shown = f"[{host}]" if ":" in host else host
        names = {f"{shown}:{port}"} | ({shown} if port == DEFAULT_PORTS.get(scheme) else set())
        if scheme not in DEFAULT_PORTS or not names & self._hosts or parts.username or parts.password:
            raise InvalidImage(f"the service fetches nothing from {min(names, key=len) if host else 'there'}")
        address = await _address(host, port)
        pinned = parts._replace(netloc=f"[{address}]:{port}" if ":" in address else f"{address}:{port}").geturl()
        headers = {"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
        extensions = {"sni_hostname": host}
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as client,
            client.stream("GET", pinned, headers=headers, extensions=extensions) as answer,
        ):
            if answer.is_redirect:
                return answer.headers.get("location", "")
            if answer.status_code != 200:
                raise InvalidImage(f"its web address answers with status {answer.status_code}")
            content = bytearray()
            async for part in answer.aiter_raw():
                content += part
                if len(content) > self._max_bytes:
                    raise InvalidImage(f"its web address answers with more than {self._max_bytes:,} bytes")
            return bytes(content)


def from_data_uri(text: str) -> bytes:
    """Return the bytes in a data URI of base64. Raises InvalidImage."""
    head, comma, content = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidImage("its data URI is not one of base64, like data:image/jpeg;base64,...")
    return _from_base64(content)


def _from_base64(text: str) -> bytes:
    """Return the bytes of base64, which `base64` of a shell and MIME break into lines. Raises InvalidImage."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("it is not base64") from None


async def _address(host: str, port: int) -> str:
    """Return an address of a host. Raises InvalidImage if a named host has one that is not public."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        plain = ipaddress.ip_address(address)
        mapped = getattr(plain, "ipv4_mapped", None)
        if not (mapped or plain).is_global:
            raise InvalidImage(f"{host} has an address that is not public")
    return addresses[0]
