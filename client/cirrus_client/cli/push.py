"""`cirrus push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client import transfer
from cirrus_client.cli.console import echo, shows_progress


def push(
    folder: Annotated[Path, typer.Argument(help="A bundle, an index, a suggester or a model repository.")],
    url: Annotated[str, typer.Argument(help="Where its files shall be, like s3://models/union or hf://name/repo.")],
) -> None:
    """Copy a folder that Cirrus wrote to object storage or a Hugging Face repository."""
    manifest = transfer.push(folder, url, show_progress=shows_progress())
    echo(f"{url} has {manifest}")
