"""A newly trained head, exported as an earlier one on the same backbone was: what `cirrus embed --head` asks for."""

from __future__ import annotations

from pathlib import Path

from cirrus_client.bundle import Bundle
from cirrus_client.errors import ExportError
from cirrus_demo.probe import rendered_probe
from cirrus_export.pipeline import ExportRequest, export

_QUERIES, _GALLERY = 64, 128


def export_head(base: Bundle, head: Path, out: Path) -> None:
    """Export a head's checkpoint as `request_like` says, its gate on the rendered probe; see `pipeline.export`."""
    export(request_like(base, head, out), rendered_probe(queries=_QUERIES, gallery=_GALLERY))


def request_like(base: Bundle, head: Path, out: Path) -> ExportRequest:
    """Return the request for a head's checkpoint with the recipe, backbone, options and precision of a bundle.

    Raises ExportError if the backbone's weights are no longer where they were.
    """
    spec = base.spec
    if spec.pretrained is not None and Path(spec.pretrained).is_absolute() and not Path(spec.pretrained).exists():
        raise ExportError(
            f"bundle {base.root}: its backbone's weights were {spec.pretrained}, which is gone; put it back, or run "
            f"`cirrus export --head {head}` with their new --pretrained, and embed with that bundle"
        )
    return ExportRequest(
        recipe=spec.recipe,
        backbone=spec.backbone,
        pretrained=spec.pretrained,
        head=str(head),
        out=out,
        precision=spec.precision,
        options=spec.options,
    )
