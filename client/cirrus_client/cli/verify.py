"""`cirrus verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.bundle import Bundle
from cirrus_client.cli.wording import described


def verify(bundle: Annotated[Path, typer.Argument(help="A bundle.")]) -> None:
    """Check that a bundle is whole and passed its fidelity gate."""
    spec = Bundle.open(bundle).spec
    typer.echo(
        f"{bundle}: whole ({len(spec.files)} files match their sha256), fidelity gate passed; recipe {spec.recipe} on "
        f"{spec.backbone}, {spec.precision}, {described(spec.space)}"
    )
