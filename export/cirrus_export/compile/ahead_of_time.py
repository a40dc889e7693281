"""Compile a bundle's ONNX graphs for GPUs that are not here, with TensorRT for RTX.

Its compiler needs neither a GPU nor a driver ("Ahead-of-Time Compilation" in its documentation). Such plans have not
been run: a GPU that loads one holds it to its graph first. Timing caches need a GPU, so there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cirrus_client.bundle import Bundle, GraphSpec
from cirrus_client.engines.nvidia import load_tensorrt_rtx
from cirrus_client.errors import ExportError
from cirrus_client.files import write_model
from cirrus_client.names import Flavour, Writer
from cirrus_client.outputs import replaced_directory
from cirrus_client.plans import PLANS, BatchProfile, Library, PlanSpec, PlansSpec
from cirrus_client.triton.repository import REPOSITORIES
from cirrus_export.compile.cards import capabilities_of, sm
from cirrus_export.compile.engine_inspector import attention_in_plan, count_attentions
from cirrus_export.compile.plan_builder import batch_profiles, parse_graph
from cirrus_export.compile.plan_record import check_any_was_built, check_none_was_refused, plan_spec
from cirrus_export.repository import write_repository

log = logging.getLogger(__name__)


def compile_ahead(bundle: Bundle, targets: Sequence[str]) -> PlansSpec:
    """Compile every graph for cards (`l4`) or architectures (`sm89`), and write `engines-rtx/`.

    The bundle's model repository for Triton's Python backend is written again, so that its models run the plans.

    One plan holds all targets. Raises EngineError if TensorRT for RTX is missing, ExportError if a target can't run
    the bundle or a graph is refused. The plans of the other graphs are kept then; if every graph is refused, older
    plans stay as they are.
    """
    capabilities = capabilities_of(targets, bundle.spec.precision)
    tensorrt = load_tensorrt_rtx()
    profiles = batch_profiles(Library.RTX, bundle.spec.max_batch)
    plans: dict[str, PlanSpec] = {}
    refused: dict[str, str] = {}
    with replaced_directory(bundle.root / Library.RTX.folder, Writer.COMPILE) as folder:
        for name, graph in bundle.spec.graphs.items():
            log.info("ONNX -> TensorRT for RTX: %s", name)
            file = bundle.graph_file(name)
            try:
                plan, warnings = build_ahead(file, graph, profiles, capabilities)
            except ExportError as error:
                refused[name] = str(error)
                continue
            for warning in warnings:
                log.warning("TensorRT for RTX on %s: %s", name, warning)
            (folder / f"{name}.plan").write_bytes(plan)
            attention = attention_in_plan(plan, count_attentions(file), profiles=len(profiles))
            plans[name] = plan_spec(bundle, folder, Library.RTX, name, attention, None)
        check_any_was_built(bundle, refused)
        record = PlansSpec(
            library=Library.RTX,
            tensorrt=tensorrt.__version__,
            gpu=None,
            compute_capabilities=capabilities,
            version_compatible=False,
            hardware_compatible=False,
            plans=plans,
            refused=refused,
        )
        write_model(folder / PLANS, record)
    write_repository(bundle.root, bundle.spec, Flavour.PYTHON, bundle.root / REPOSITORIES / Flavour.PYTHON)
    check_none_was_refused(bundle, record)
    return record


def build_ahead(
    file: Path, graph: GraphSpec, profiles: Sequence[BatchProfile], capabilities: Sequence[str]
) -> tuple[Any, tuple[str, ...]]:
    """Return a graph's plan, a bytes-like object, and the compiler's warnings. Raises ExportError if it is refused."""
    tensorrt = load_tensorrt_rtx()
    parsed = parse_graph(Library.RTX, tensorrt, file, graph, profiles)
    config = parsed.config
    config.num_compute_capabilities = len(capabilities)
    for position, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(tensorrt.ComputeCapability, sm(capability)), position)
    return parsed.build(), parsed.warnings()
