"""The whole export on one page: recipe + checkpoint -> torch -> ONNX -> precision -> fidelity gate -> repository."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from cirrus_client.bundle import (
    CONTRACT,
    Bundle,
    BundleSpec,
    FidelityStatus,
    GraphSpec,
    Precision,
    SpaceSpec,
    write_contract,
)
from cirrus_client.errors import CheckpointError, ExportError, FidelityError
from cirrus_client.files import is_foreign, replace_directory, sha256_of_file
from cirrus_export.backbones.registry import RANDOM, load_backbone
from cirrus_export.checkpoints.state import StateDict, fingerprint, one_error_for_all_keys
from cirrus_export.compile.onnx_graph import write_onnx
from cirrus_export.compile.precision import check_precision, lower_precision
from cirrus_export.compile.tensorrt_engine import CompileOptions, check_machine, compile_plans
from cirrus_export.gate.fidelity import FidelityReport, ProbeTensors, measure
from cirrus_export.gate.probe import Probe
from cirrus_export.gate.report import write_report
from cirrus_export.graph import Graph
from cirrus_export.recipes import Recipe, recipe_named
from cirrus_export.recipes.recipe import Parts, parse_options
from cirrus_export.repository import Flavour, write_repository

MAX_BATCH = 64
_CALIBRATION_ITEMS = 64
_RANDOM_HEAD_SEED = 20251128
_RECORDED_PACKAGES = ("torch", "onnx", "onnxruntime", "open_clip_torch", "transformers", "tokenizers", "pillow")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportRequest:
    """What to export, as the user says it.

    pretrained: an open_clip tag, a file, or "random"; None where the head's checkpoint carries its backbone.
    head: the head's checkpoint, "random", or None where the recipe has no head.
    for_triton: an NGC release of Triton for which TensorRT plans are compiled as well, or None.
    """

    recipe: str
    backbone: str
    pretrained: str | None
    head: str | None
    out: Path
    precision: Precision = Precision.FP32
    options: Mapping[str, str | float | bool] = field(default_factory=dict)
    for_triton: str | None = None


def export(request: ExportRequest, probe: Probe) -> Bundle:
    """Export a model, hold it to its original, and write the bundle.

    Raises ExportError (CheckpointError) before anything is written if the request can't be met: also if this machine's
    TensorRT is not the one of `for_triton`. Raises FidelityError if the exported graphs miss the gate: the bundle is
    then there, with its report, marked as failed and without a model repository.
    """
    plans = CompileOptions(for_triton=request.for_triton)
    if request.for_triton is not None:
        check_machine(plans)
    check_precision(request.precision)
    if is_foreign(request.out, CONTRACT):
        raise ExportError(f"--out {request.out}: exists and is not a bundle; name another path or remove it")
    with replace_directory(request.out) as root:
        log.info("building %s on %s", request.recipe, request.backbone)
        recipe = build_recipe(request)
        draft = _draft(request, recipe, root)
        graphs = recipe.graphs()
        specs = {graph.name: _write_graph(graph, root) for graph in graphs}
        draft = draft.model_copy(update={"graphs": specs, "files": _checksums(root)})
        tensors = ProbeTensors(probe, Bundle(root, draft))
        if request.precision is not Precision.FP32:
            _lower(graphs, tensors, root, request.precision)
        report = measure(Bundle(root, draft), recipe, graphs, tensors)
        write_report(report, root)
        _finish(root, draft, report)
    bundle = Bundle.open(request.out, allow_failed=True)
    if not report.passed:
        raise FidelityError(
            f"{request.out} failed its fidelity gate and is marked so: {'; '.join(report.failures)}; "
            f"see {request.out / 'report.md'}"
        )
    if request.for_triton is not None:
        compile_plans(bundle, probe, plans)
    return bundle


def build_recipe(request: ExportRequest) -> Recipe:
    """Return the torch original of a request. Raises ExportError or CheckpointError."""
    recipe_type = recipe_named(request.recipe)
    options = parse_options(recipe_type, request.options)
    head = _read_head(request, recipe_type)
    fine_tuned = recipe_type.checkpoint_backbone(head) if head else None
    try:
        with one_error_for_all_keys():
            backbone = load_backbone(request.backbone, request.pretrained, fine_tuned)
            torch.manual_seed(_RANDOM_HEAD_SEED)
            return recipe_type(Parts(backbone, head), options)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; read as {recipe_type.name} on --backbone {request.backbone}") from None


def _draft(request: ExportRequest, recipe: Recipe, root: Path) -> BundleSpec:
    """The contract as far as it is known before the graphs are written; the tokenizer is written."""
    tokenizer = recipe.backbone.write_tokenizer(root, recipe.prompt)
    preprocess = recipe.preprocess(recipe.backbone.image_size_px)
    components = {name: fingerprint(module) for name, module in recipe.target_modules().items()} | {
        "preprocess": preprocess.model_dump_json(),
        "tokenizer": sha256_of_file(root / tokenizer.file),
        "pooling": recipe.pooling(),
    }
    return BundleSpec(
        name=request.out.name,
        recipe=recipe.name,
        backbone=request.backbone,
        pretrained=_located(request.pretrained),
        head=request.head if request.head in (None, RANDOM) else sha256_of_file(Path(request.head)),
        options=recipe.options.model_dump(mode="json"),
        precision=request.precision,
        space=SpaceSpec.of(components, dim=recipe.dim, vectors=recipe.vectors, similarity=recipe.similarity),
        preprocess=preprocess,
        tokenizer=tokenizer,
        graphs={},
        ensembles=recipe.ensembles(),
        max_batch=MAX_BATCH,
        caption_join=recipe.caption_join,
        fidelity=FidelityStatus(passed=False, failures=("not measured yet",)),
        versions={package: version(package) for package in _RECORDED_PACKAGES},
        files={},
    )


def _located(pretrained: str | None) -> str | None:
    """A path so that it holds from any folder; a tag as it is."""
    return str(Path(pretrained).resolve()) if pretrained is not None and Path(pretrained).exists() else pretrained


def _read_head(request: ExportRequest, recipe: type[Recipe]) -> StateDict | None:
    if not recipe.needs_head:
        if request.head is not None:
            raise ExportError(f"recipe {recipe.name} has no head: leave --head away")
        return None
    if request.head is None:
        raise ExportError(f"recipe {recipe.name} needs --head: a checkpoint file, or 'random'")
    return None if request.head == RANDOM else recipe.read_head(Path(request.head))


def _write_graph(graph: Graph, root: Path) -> GraphSpec:
    log.info("torch -> ONNX: %s", graph.name)
    return write_onnx(graph, root / "graphs" / f"{graph.name}.onnx")


def _lower(graphs: Sequence[Graph], probe: ProbeTensors, root: Path, precision: Precision) -> None:
    inputs = probe.stage_inputs(graphs, items=_CALIBRATION_ITEMS)
    for graph in graphs:
        log.info("fp32 -> %s: %s", precision, graph.name)
        calibration = {spec.name: inputs[spec.name] for spec in graph.inputs}
        lower_precision(root / "graphs" / f"{graph.name}.onnx", precision, calibration)


def _finish(root: Path, draft: BundleSpec, report: FidelityReport) -> None:
    status = FidelityStatus(passed=report.passed, failures=report.failures)
    spec = draft.model_copy(update={"fidelity": status, "files": _checksums(root)})
    write_contract(root, spec)
    if report.passed:
        for flavour in (Flavour.PYTHON, Flavour.ONNXRUNTIME):
            write_repository(root, spec, flavour, root / "triton" / flavour)


def _checksums(root: Path) -> dict[str, str]:
    paths = [*sorted((root / "graphs").iterdir()), root / "tokenizer.json"]
    return {str(path.relative_to(root)): sha256_of_file(path) for path in paths}
