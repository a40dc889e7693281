"""What `cirrus serve` and `cirrus verify` take: a bundle, a suggester or a model repository."""

from __future__ import annotations

from pathlib import Path

from cirrus_client.bundle import CONTRACT as BUNDLE
from cirrus_client.bundle import Bundle
from cirrus_client.names import Flavour
from cirrus_client.suggest import CONTRACT as SUGGESTER
from cirrus_client.suggest import read_suggester
from cirrus_client.triton.repository import REPOSITORIES


def find_repository(path: Path) -> Path:
    """Return the repository that is served for a bundle, a suggester or a repository.

    Raises BundleError if the bundle or the suggester is not whole or failed its gate.
    """
    if (path / BUNDLE).exists():
        return Bundle.open(path).root / REPOSITORIES / Flavour.PYTHON
    if (path / SUGGESTER).exists():
        read_suggester(path)
        return path / REPOSITORIES / Flavour.PYTHON
    return path
