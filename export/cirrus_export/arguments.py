"""What several commands take: a probe, and options as name=value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from cirrus_export.gate.probe import Probe, default_probe, read_probe


def probe_of(folder: Path | None, *, queries: int, gallery: int) -> Probe:
    """Return a folder's probe, or Cirrus's own; see `read_probe`."""
    if folder is None:
        return default_probe(queries=queries, gallery=gallery)
    return read_probe(folder, queries=queries, gallery=gallery)


def options_of(pairs: Sequence[str]) -> dict[str, str]:
    """Return options by name. Raises BadParameter for one that is not name=value."""
    for pair in pairs:
        if "=" not in pair:
            raise typer.BadParameter(f"'{pair}' is not name=value", param_hint="--option")
    return dict(pair.split("=", 1) for pair in pairs)
