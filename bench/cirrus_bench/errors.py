"""What can go wrong in a bench."""

from __future__ import annotations

from cirrus_client.errors import CirrusError


class PeerError(CirrusError):
    """Another tool can't be installed, or its driver died."""
