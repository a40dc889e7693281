"""`python -m cirrus_demo`: the demo's checkpoints, pictures and queries as files."""

from __future__ import annotations

import logging
from dataclasses import astuple
from pathlib import Path
from typing import Annotated

import typer

from cirrus_demo.attributes import Split
from cirrus_demo.catalogue import PUBLISHED_SEED, write_catalogue, write_photos
from cirrus_demo.probe import write_probe
from cirrus_demo.products import write_products

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.command()
def weights(folder: Path) -> None:
    """Write the demo's CLIP and heads as a user would bring them."""
    from cirrus_demo.weights import materialise

    typer.echo("\n".join(map(str, astuple(materialise(folder)))))


@app.command()
def catalogue(folder: Path) -> None:
    """Write the held-out test catalogue in FashionIQ's layout, sketches included."""
    write_catalogue(folder, split=Split.TEST, seed=PUBLISHED_SEED)


@app.command()
def probe(
    folder: Path,
    queries: Annotated[int, typer.Option(min=1)] = 240,
    gallery: Annotated[int, typer.Option(min=11, help="Images, at least those of the queries.")] = 480,
) -> None:
    """Write images and queries for `cirrus export --probe`."""
    write_probe(folder, queries=queries, gallery=gallery)


@app.command()
def photos(
    folder: Path,
    count: Annotated[int, typer.Option(min=1)] = 200,
    size_px: Annotated[int, typer.Option(min=64, help="Longer side.")] = 1024,
    seed: int = 1,
) -> None:
    """Write photos of held-out garments, for a gallery of your own size."""
    write_photos(folder, count=count, size_px=size_px, seed=seed)


@app.command()
def products(path: Path, count: Annotated[int, typer.Option(min=1)] = 200, seed: int = 1) -> None:
    """Write what is on the photos of the same count and seed, for `cirrus index --metadata`."""
    write_products(path, count=count, seed=seed)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    app()
