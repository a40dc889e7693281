"""`cirrus suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.cli.console import echo
from cirrus_client.cli.options import ServerOption
from cirrus_client.suggest import LocalSuggester, TritonSuggester


def suggest(
    reference: Annotated[Path, typer.Argument(help="The image to start from.")],
    target: Annotated[Path, typer.Argument(help="The image to arrive at.")],
    model: Annotated[Path | None, typer.Option(help="A suggester that `cirrus export-suggester` wrote.")] = None,
    server: ServerOption = None,
) -> None:
    """Suggest the edit text that leads from one image to another."""
    if model is not None and server is None:
        echo(LocalSuggester(model).suggest(reference, target))
    elif server is not None and model is None:
        echo(TritonSuggester(server).suggest(reference, target))
    else:
        raise typer.BadParameter("give exactly one of them", param_hint="--model, --server")
