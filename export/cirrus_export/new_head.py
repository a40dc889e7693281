"""Export a newly trained head as an earlier one on the same backbone was exported, for `cirrus embed --head`."""

from __future__ import annotations

from pathlib import Path

from cirrus_client.bundle import Bundle
from cirrus_client.errors import ExportError
from cirrus_client.plugins import file_of
from cirrus_export.gate.probe import default_probe
from cirrus_export.pipeline import ExportRequest, export


def export_head(base: Bundle, head: Path, out: Path) -> None:
    """Export a head's checkpoint as `request_like` says, on the default probe; see `pipeline.export`."""
    export(request_like(base, head, out), default_probe())


def request_like(base: Bundle, head: Path, out: Path) -> ExportRequest:
    """Return the request for a head's checkpoint with the recipe, backbone, options and precision of a bundle.

    Raises ExportError if the backbone's weights are no longer where they were, and for a recipe or backbone that was a
    file: a bundle may come from anywhere, and what it names is not run.
    """
    spec = base.spec
    code = [name for name in (spec.recipe, spec.backbone) if file_of(name) is not None]
    if code:
        raise ExportError(
            f"bundle {base.root}: was exported with {code[0]}, and a file that a bundle names is not run: "
            f"`cirrus export --recipe {spec.recipe} --backbone {spec.backbone} --head {head}`, and embed with it"
        )
    path = None if spec.pretrained is None else Path(spec.pretrained.rpartition("=")[2])
    if path is not None and path.is_absolute() and not path.exists():
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
