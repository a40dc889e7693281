"""Export a newly trained head on the backbone of a bundle, as a bundle of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from cirrus_client.bundle import CONTRACT, Bundle
from cirrus_client.errors import BundleError, CheckpointError, ExportError
from cirrus_client.files import sha256_of_file

HeadExporter = Callable[[Bundle, Path, Path], None]
"""Exports a head. Arguments: the bundle with its backbone, the head's checkpoint, the folder of the new bundle."""


def bundle_with_head(base: Bundle, head: Path, out: Path) -> Bundle:
    """Return the bundle of a head on the backbone of `base`. Export it to `out` if it is not there yet.

    Raises CheckpointError if the head is not a file or does not fit, BundleError if `out` is another bundle,
    ExportError if the export package is not installed, and FidelityError if the export fails its gate.
    """
    if not head.is_file():
        raise CheckpointError(f"--head {head}: there is no such file")
    if (out / CONTRACT).exists():
        bundle = Bundle.open(out)
        if not _is_of(bundle, base, head):
            raise BundleError(f"bundle {out} is not of {head} on the backbone of {base.root}; name another --out")
        return bundle
    _exporter()(base, head, out)
    return Bundle.open(out)


def _is_of(bundle: Bundle, base: Bundle, head: Path) -> bool:
    given = ("recipe", "backbone", "pretrained", "options", "precision")
    same = all(getattr(bundle.spec, name) == getattr(base.spec, name) for name in given)
    return same and bundle.spec.head == sha256_of_file(head)


def _exporter() -> HeadExporter:
    for exporter in entry_points(group="cirrus.exporters", name="head"):
        load: HeadExporter = exporter.load()
        return load
    raise ExportError(
        "a new --head is exported first, and the export package is not installed here: pip install "
        "'cirrus-cir[export]', or run `cirrus export` where it is, and embed with that bundle"
    )
