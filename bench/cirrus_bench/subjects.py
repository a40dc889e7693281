"""The subjects of the benches: torch models, their bundles at several precisions, and rendered photos."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.engines import candidates
from cirrus_client.errors import BundleError, EngineError, ExportError, FidelityError
from cirrus_client.plans import has_plans
from cirrus_demo.catalogue import write_photos
from cirrus_demo.probe import rendered_probe
from cirrus_demo.weights import DemoWeights
from cirrus_export.compile.tensorrt_engine import CompileOptions, check_machine, compile_plans
from cirrus_export.draft import recorded_versions
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.recipes.clip import Clip
from cirrus_export.recipes.recipe import Recipe
from cirrus_export.recipes.transagg_union import TransAggUnion

PRECISIONS = (Precision.FP32, Precision.BF16, Precision.INT8)
log = logging.getLogger(__name__)


R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class Subjects(Generic[R]):
    """A torch original, and its bundles at the precisions that an engine here runs, all with the same weights."""

    recipe: R
    bundles: dict[Precision, Bundle]


def bench_subjects(backbone: str, work: Path) -> Subjects[TransAggUnion]:
    """Build the torch original with random weights, and export its bundles or find them below `work`."""
    return _subjects(TransAggUnion, backbone, work / f"bundle-{backbone}", head="random")


def zero_shot_subjects(backbone: str, work: Path) -> Subjects[Clip]:
    """Build plain CLIP with random weights, and export its bundles or find them below `work`."""
    return _subjects(Clip, backbone, work / f"bundle-clip-{backbone}", head=None)


def demo_request(weights: DemoWeights, out: Path, precision: Precision) -> ExportRequest:
    """Return the request that exports the demo's trained model at a precision."""
    return ExportRequest(
        recipe="transagg-union",
        backbone="cirrus-demo",
        pretrained=str(weights.clip),
        head=str(weights.head),
        out=out,
        precision=precision,
    )


def kept_bundle(root: Path) -> Bundle | None:
    """Return the bundle of an earlier run, or None if there is none that the installed versions of packages made."""
    try:
        bundle = Bundle.open(root, allow_failed=True)
    except BundleError:
        return None
    return bundle if bundle.spec.versions == recorded_versions() else None


def bench_photos(work: Path, *, count: int, size_px: int) -> list[Path]:
    """Return rendered JPEG photos, which the first run writes below `work`. size_px: their longer side."""
    folder = work / f"photos-{count}-{size_px}px"
    existing = sorted(folder.glob("*.jpg"))
    return (
        existing
        if len(existing) == count
        else write_photos(folder, count=count, size_px=size_px, seed=1, show_progress=False)
    )


def _subjects(kind: type[R], backbone: str, stem: Path, *, head: str | None) -> Subjects[R]:
    requests = {
        precision: ExportRequest(
            recipe=kind.name,
            backbone=backbone,
            pretrained="random",
            head=head,
            out=stem.with_name(f"{stem.name}-{precision}"),
            precision=precision,
        )
        for precision in PRECISIONS
        if candidates(precision)
    }
    recipe = build_recipe(requests[Precision.FP32])
    assert isinstance(recipe, kind)
    return Subjects(recipe, {precision: _bundle(request) for precision, request in requests.items()})


def _bundle(request: ExportRequest) -> Bundle:
    """Export a bundle if need be, compile its TensorRT plans where a GPU is, and open it.

    A bundle with random weights may fail its fidelity gate; it is opened all the same, since the bench reports its
    fidelity itself.
    """
    bundle = kept_bundle(request.out)
    if bundle is None:
        log.info("exporting %s at %s for the bench", request.backbone, request.precision)
        try:
            export(request, rendered_probe(queries=16, gallery=48))
        except FidelityError as error:
            log.warning("%s", error)
        bundle = Bundle.open(request.out, allow_failed=True)
    if not has_plans(bundle.root):
        options = CompileOptions()
        try:
            check_machine(options)
            compile_plans(bundle, rendered_probe(queries=8, gallery=16), options)
        except (EngineError, ExportError) as error:
            log.info("no TensorRT plans of %s: %s", request.out, error)
    return bundle
