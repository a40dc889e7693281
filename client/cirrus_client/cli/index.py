"""`cirrus index`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.cli.wording import described
from cirrus_client.gallery import read_gallery
from cirrus_client.index import BuildOptions, IndexManifest, SearchKind, build_index


def index(
    gallery: Annotated[Path, typer.Argument(help="A gallery that `cirrus embed` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the index; an older one is replaced.")],
    kind: Annotated[
        SearchKind, typer.Option(help="Approximate is faster on large galleries; its agreement is measured.")
    ] = SearchKind.EXACT,
) -> None:
    """Build a FAISS index over an embedded gallery."""
    built = build_index(read_gallery(gallery), out, options=BuildOptions(kind=kind))
    typer.echo(f"{out}: {built.count:,} images, {described(built.space)}{_agreement(built)}")


def _agreement(built: IndexManifest) -> str:
    if built.agreement is None:
        return "" if built.kind is SearchKind.EXACT else ", agreement with exact search not measured"
    found = built.agreement
    return f", top-{found.k} agreement with exact search {found.share:.1%} ({found.queries} queries: {found.source})"
