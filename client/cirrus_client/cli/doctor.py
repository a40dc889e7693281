"""`cirrus doctor`. It starts whatever is broken, so nothing but typer is imported before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.cli.console import print_table
from cirrus_client.doctor import State, examine


def doctor(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Also say whether this bundle's TensorRT plans run here.")
    ] = None,
) -> None:
    """Print what is installed, which engines and GPUs work, and what is missing. Exits 1 if a part is broken."""
    opened = None
    if bundle is not None:
        from cirrus_client.bundle import Bundle

        opened = Bundle.open(bundle)
    findings = examine(opened)
    print_table(("", "what", "found", "way out"), [(one.state, one.what, one.found, one.way_out) for one in findings])
    if any(finding.state is State.BROKEN for finding in findings):
        raise typer.Exit(1)
