"""Errors of the bench."""

from __future__ import annotations

from cirrus_client.errors import CirrusError


class PeerError(CirrusError):
    """Another tool that can't be installed, does not start, or stopped during a run."""


class FloorError(CirrusError):
    """A graph whose work can't be counted."""
