"""Phrases that several verbs print."""

from __future__ import annotations

from cirrus_client.bundle import SpaceSpec


def described(space: SpaceSpec) -> str:
    """Return a space as people read it: its vectors per image, their width, and the start of its fingerprint."""
    vectors = "" if space.vectors == 1 else f"{space.vectors} vectors per image, "
    return f"{vectors}width {space.dim}, space {space.fingerprint[:16]}"
