"""The protocol between the client and Cirrus's Triton models: ensemble parameters, and errors as messages."""

from __future__ import annotations

import re

from cirrus_client.errors import InvalidImage, InvalidInput, InvalidText, UnsupportedImage
from cirrus_client.names import EnsembleName

SPACE_PARAMETER = "cirrus_space"
BUNDLE_PARAMETER = "cirrus_bundle"
QUERIES_PARAMETER = "cirrus_queries"

_INVALID: dict[str, type[InvalidInput]] = {
    kind.__name__: kind for kind in (InvalidImage, InvalidText, UnsupportedImage)
}
_MESSAGE = re.compile(r"cirrus:(?P<kind>\w+)@(?P<position>\d+): (?P<reason>.*)", re.DOTALL)


def served_name(ensemble: EnsembleName, bundle: str | None) -> str:
    """Return the server's name of an ensemble: its own name, or `<bundle>.<name>` if several bundles are served."""
    return ensemble.value if bundle is None else f"{bundle}.{ensemble.value}"


def error_message(error: InvalidInput, position: int) -> str:
    """Return the message by which a Triton model reports a bad item at a position in its request."""
    return f"cirrus:{type(error).__name__}@{position}: {error}"


def parse_error(message: str) -> tuple[type[InvalidInput], int, str] | None:
    """Return (error class, position in the request, reason) of a server's message, or None for any other error."""
    found = _MESSAGE.search(message)
    if found is None or found["kind"] not in _INVALID:
        return None
    return _INVALID[found["kind"]], int(found["position"]), found["reason"]
