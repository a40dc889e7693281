"""`cirrus pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client import transfer
from cirrus_client.cli.console import echo, shows_progress


def pull(
    url: Annotated[str, typer.Argument(help="Where `cirrus push` put the folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; an older version is replaced in one step.")],
) -> None:
    """Copy a folder from where `cirrus push` put it, and check every file. What is here already is not fetched."""
    manifest = transfer.pull(url, out, show_progress=shows_progress())
    echo(f"{out} has {manifest}, as they were pushed")
