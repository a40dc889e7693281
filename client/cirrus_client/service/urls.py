"""The URL of a search service: what is one, how it is shown, and why nobody answers there."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from cirrus_client.errors import ServerError

_AUTHORITY = "; name the certificate of a private authority in SSL_CERT_FILE"
_HINTS = {
    "unable to get local issuer": _AUTHORITY,
    "self-signed certificate": _AUTHORITY,
    "WRONG_VERSION_NUMBER": "; there is no TLS there, try http://",
}


def check_url(url: str) -> None:
    """Raise ServerError unless a URL is one of HTTP, with a host."""
    try:
        parts = urlsplit(url)
        is_named = bool(parts.hostname) and url.isprintable() and bool((parts.hostname or "").encode("idna"))
        if parts.scheme in ("http", "https") and is_named and (parts.port is None or parts.port):
            return
    except ValueError:  # of a port that is no number, or a host that no name service knows
        pass
    raise ServerError(f"search service {url}: expected a URL, like http://127.0.0.1:8080", url=url)


def without_password(url: str) -> str:
    """Return a URL without the name and password for a proxy, which no message and no link should show."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def failure(error: Exception) -> str:
    """Return why a connection failed, and what to do about its TLS."""
    reason = str(error) or type(error).__name__
    return reason + next((hint for mark, hint in _HINTS.items() if mark in reason), "")
