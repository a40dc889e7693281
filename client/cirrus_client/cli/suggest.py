"""`cirrus suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.cli.console import echo, shows_progress
from cirrus_client.cli.options import ServerOption
from cirrus_client.suggest import LocalSuggester, Suggester, TritonSuggester
from cirrus_client.suggested_pairs import caption_pairs

_SHOWN = 20


def suggest(
    reference: Annotated[Path, typer.Argument(help="The image to start from, or a file of pairs (.jsonl) with --out.")],
    target: Annotated[Path | None, typer.Argument(help="The image to arrive at.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the texts of many pairs; an unfinished one is resumed.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="A suggester that `cirrus export-suggester` wrote.")] = None,
    server: ServerOption = None,
) -> None:
    """Suggest the edit text that leads from one image to another, or those of many pairs.

    A file of pairs has a JSON object a line, {"reference": "a.jpg", "target": "b.jpg"}, with paths relative to it.
    """
    if (target is None) == (out is None):
        raise typer.BadParameter("give a second image, or a file of pairs and --out", param_hint="TARGET, --out")
    suggester = _opened(model, server)
    if target is not None:
        echo(suggester.suggest(reference, target))
    elif out is not None:
        _caption(reference, out, suggester)


def _opened(model: Path | None, server: str | None) -> Suggester:
    if model is not None and server is None:
        return LocalSuggester(model)
    if server is not None and model is None:
        return TritonSuggester(server)
    raise typer.BadParameter("give exactly one of them", param_hint="--model, --server")


def _caption(pairs: Path, out: Path, suggester: Suggester) -> None:
    captioned = caption_pairs(pairs, out, suggester, show_progress=shows_progress())
    failed = len(captioned.failed)
    for pair in captioned.failed[:_SHOWN]:
        echo(f"{pair.reference} -> {pair.target}: {pair.error}", err=True)
    if failed > _SHOWN:
        echo(f"... and {failed - _SHOWN} more, each with its error in {out}", err=True)
    echo(f"{out}: {captioned.written} edit texts, {captioned.before} of them from before, {failed} failed")
    if failed:
        raise typer.Exit(1)
