"""The whole export on one page: recipe + checkpoint -> torch -> ONNX -> precision -> fidelity gate -> repository."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cirrus_client.bundle import PROBE_QUERIES, Bundle, FidelityStatus, GraphSpec, Precision, write_contract
from cirrus_client.canary import write_canary
from cirrus_client.errors import CheckpointError, ExportError, FidelityError
from cirrus_client.names import Writer
from cirrus_client.outputs import replaced_directory
from cirrus_export.backbones.backbone import check_kind
from cirrus_export.backbones.registry import RANDOM, BackboneSource, find_backbone
from cirrus_export.checkpoints.state import StateDict, one_error_for_all_keys
from cirrus_export.compile.onnx_graph import write_onnx
from cirrus_export.compile.precision import check_precision, lower_precision
from cirrus_export.compile.stored_weights import store_in_16_bits
from cirrus_export.compile.tensorrt_engine import CompileOptions, check_machine, compile_plans
from cirrus_export.draft import NOT_MEASURED, ContractDraft
from cirrus_export.gate.canary import make_canary
from cirrus_export.gate.fidelity import ProbeTensors, measure
from cirrus_export.gate.probe import FEWEST_IMAGES, Probe
from cirrus_export.gate.report import write_report
from cirrus_export.gate.thresholds import THRESHOLDS
from cirrus_export.graph import Graph
from cirrus_export.recipes import Recipe, recipe_named
from cirrus_export.recipes.recipe import Options, Parts, parse_options
from cirrus_export.recipes.recognition import read_head_of
from cirrus_export.repository import Flavour, write_repository
from cirrus_export.request import ExportRequest

__all__ = ["ExportRequest", "build_recipe", "export"]

_CALIBRATION_ITEMS = 64
_RANDOM_HEAD_SEED = 20251128
_SHAPE_ERRORS = (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError)
"""What torch and transformers raise for sizes that can't be."""
log = logging.getLogger(__name__)


def export(request: ExportRequest, probe: Probe, *, show_progress: bool = False) -> Bundle:
    """Export a model, compare the export with its original, and write the bundle.

    Raises ExportError or CheckpointError before anything is written if the request can't be met: also if this
    machine's TensorRT is not the one of `for_triton`. Raises FidelityError if the exported graphs miss the gate: the
    bundle is then there, with its report, marked as failed and without a model repository.
    """
    if len(probe.gallery) < FEWEST_IMAGES:
        raise ExportError(
            f"probe {probe.name}: its gallery has {len(probe.gallery)} images, and the gate compares top tens: add "
            f"images until there are {FEWEST_IMAGES}"
        )
    plans = CompileOptions(for_triton=request.for_triton)
    if request.for_triton is not None:
        check_machine(plans)
    check_precision(request.precision)
    with replaced_directory(request.out, Writer.EXPORT) as root:
        log.info("building %s on %s", request.recipe, request.backbone)
        recipe = build_recipe(request)
        draft = ContractDraft(request, recipe, root)
        graphs = recipe.graphs()
        specs = {graph.name: _write_graph(graph, root) for graph in graphs}
        written = Bundle(root, draft.contract(specs, NOT_MEASURED))
        tensors = ProbeTensors(probe, written)
        if request.precision is Precision.FP32:
            for graph in graphs:
                store_in_16_bits(root / specs[graph.name].file)
        else:
            _lower(graphs, tensors, root, request.precision)
        measured = measure(written, recipe, graphs, tensors, show_progress=show_progress)
        report = measured.report
        write_report(report, root)
        np.save(root / PROBE_QUERIES, measured.queries)
        write_canary(root, make_canary(recipe, graphs, tensors, THRESHOLDS[request.precision]))
        contract = draft.contract(specs, FidelityStatus(passed=report.passed, failures=report.failures))
        write_contract(root, contract)
        if report.passed:
            for flavour in (Flavour.PYTHON, Flavour.ONNXRUNTIME):
                write_repository(root, contract, flavour, root / "triton" / flavour)
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
    options = parse_options(recipe_type, request.recipe_options())
    backbone_options = request.backbone_options()
    head = _read_head(request, recipe_type)
    try:
        fine_tuned = recipe_type.checkpoint_backbone(head) if head else None
        source = find_backbone(
            request.backbone,
            request.pretrained,
            fine_tuned,
            tokenizer=request.tokenizer,
            options=backbone_options,
        )
        check_kind(source.family.backbone_type, recipe_type.works_on, recipe_type.name)
        _check_head(request, recipe_type, source)
        _check_source(recipe_type, source, head, options)
        with one_error_for_all_keys():
            backbone = source.load()
            torch.manual_seed(_RANDOM_HEAD_SEED)
            return recipe_type(Parts(backbone, head), options)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; read as {recipe_type.name} on --backbone {request.backbone}") from None
    except _SHAPE_ERRORS as error:
        if not request.reads_files():
            raise
        raise CheckpointError(
            f"checkpoint {request.head or request.pretrained}: the shapes of its tensors make no {recipe_type.name} on "
            f"--backbone {request.backbone} ({error})"
        ) from error


def _check_source(recipe: type[Recipe], source: BackboneSource, head: StateDict | None, options: Options) -> None:
    """Refuse a backbone or its options that the recipe can't use before weights are read or fetched."""
    source.check()
    own = source.preprocess()
    if own is not None:
        recipe.preprocess(own)
    if source.name is not None:
        recipe.check(source.sizes(), head, options)


def _read_head(request: ExportRequest, recipe: type[Recipe]) -> StateDict | None:
    if recipe.needs_head and request.head is None:
        raise ExportError(f"recipe {recipe.name} needs --head: a checkpoint file, or 'random'")
    if request.head is not None and not (recipe.needs_head or recipe.needs_head_on):
        raise ExportError(f"recipe {recipe.name} has no head: leave --head away")
    return None if request.head in (None, RANDOM) else read_head_of(recipe, Path(str(request.head)))


def _check_head(request: ExportRequest, recipe: type[Recipe], source: BackboneSource) -> None:
    """Refuse a head that is missing on this kind of backbone, or has no place there."""
    if not recipe.needs_head_on:
        return
    needed = issubclass(source.family.backbone_type, recipe.needs_head_on)
    if needed and request.head is None:
        raise ExportError(
            f"recipe {recipe.name} on --backbone {request.backbone} needs --head: a checkpoint file, or 'random'"
        )
    if not needed and request.head is not None:
        raise ExportError(f"recipe {recipe.name} on --backbone {request.backbone} has no head: leave --head away")


def _write_graph(graph: Graph, root: Path) -> GraphSpec:
    log.info("torch -> ONNX: %s", graph.name)
    return write_onnx(graph, root / "graphs" / f"{graph.name}.onnx")


def _lower(graphs: Sequence[Graph], probe: ProbeTensors, root: Path, precision: Precision) -> None:
    inputs = probe.stage_inputs(graphs, items=_CALIBRATION_ITEMS)
    for graph in graphs:
        log.info("fp32 -> %s: %s", precision, graph.name)
        calibration = {spec.name: inputs[spec.name] for spec in graph.inputs}
        lower_precision(root / "graphs" / f"{graph.name}.onnx", precision, calibration)
