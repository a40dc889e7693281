"""The table of `cirrus index --plan`."""

from __future__ import annotations

from contextlib import suppress

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from cirrus_client.cli.console import echo, print_table
from cirrus_client.cli.wording import described
from cirrus_client.gallery import Gallery
from cirrus_client.index.figures import measured_figures
from cirrus_client.index.plan import PlannedIndex, plan, recommended

_HEADINGS = ("kind", "storage", "memory", "on disk", "to build", "one query", "agreement", "fits")


def print_plan(gallery: Gallery, memory: str | None) -> None:
    """Print what an index of each kind would cost for a gallery. memory: the budget, like "8GiB", or None."""
    planned = plan(len(gallery), gallery.space, None if memory is None else _bytes(memory))
    best = recommended(planned)
    echo(f"{len(gallery):,} images, {described(gallery.space)}")
    print_table(_HEADINGS, [_row(one) for one in planned], right=_HEADINGS[2:7])
    if best is None:
        echo("nothing fits: give more memory, or split the gallery into several collections")
    else:
        storage = "" if best.storage == "float32" else f" --storage {best.storage}"
        echo(f"for this gallery: cirrus index {gallery.root} --out INDEX --kind {best.kind}{storage}")
    echo(
        f"times are scaled from those of {measured_figures().machine}; agreement is that of the gallery measured there"
    )


def _row(one: PlannedIndex) -> list[str]:
    return [
        one.kind,
        one.storage,
        ByteSize(one.memory_bytes).human_readable(),
        ByteSize(one.disk_bytes).human_readable(),
        _duration(one.build_s),
        f"{one.one_query_ms:.2g} ms",
        f"{one.agreement:.1%}",
        "yes" if one.fits else "no",
    ]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _bytes(memory: str) -> int:
    if not memory[-1:].isdigit():  # "8" would be eight bytes
        with suppress(ValidationError):
            return TypeAdapter(ByteSize).validate_python(memory)
    raise typer.BadParameter(f"{memory!r} is no amount of memory, like 8GiB or 500MB", param_hint="--memory")
