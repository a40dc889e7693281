"""Compile a bundle's ONNX graphs to TensorRT plans, on the machine that serves them.

The code uses the API that TensorRT 10 and 11 share; tests/export/test_tensorrt.py checks every name against both.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirrus_client.bundle import Bundle, GraphSpec
from cirrus_client.engines.nvidia import load_tensorrt, this_gpu
from cirrus_client.engines.tensorrt import TensorRtEngine
from cirrus_client.errors import ExportError
from cirrus_client.files import write_model
from cirrus_client.names import Writer
from cirrus_client.outputs import replaced_directory
from cirrus_client.plans import PLANS, Library, PlansSpec
from cirrus_export.compile.engine_inspector import attention_of, count_attentions
from cirrus_export.compile.ngc_releases import check_release
from cirrus_export.compile.plan_builder import batch_profiles, parse_graph
from cirrus_export.compile.plan_record import check_any_was_built, check_none_was_refused, plan_spec
from cirrus_export.gate.plan_fidelity import GraphValues, hold_to_graphs
from cirrus_export.gate.probe import Probe
from cirrus_export.repository import Flavour, write_repository

TIMING_CACHE = "timing.cache"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileOptions:
    """What plans must run on, other than this machine's TensorRT and GPU.

    for_triton: the TensorRT of an NGC release, like 26.07. hardware_compatible: Ampere and every newer GPU.
    version_compatible: newer TensorRTs of the same major version. The last two make plans slower.
    """

    for_triton: str | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False


def check_machine(options: CompileOptions) -> None:
    """Raise EngineError if TensorRT or a GPU is missing here, ExportError if the plans could not run in the release."""
    tensorrt = load_tensorrt()
    if options.for_triton is not None:
        check_release(options.for_triton, tensorrt.__version__, version_compatible=options.version_compatible)
    this_gpu()


def compile_plans(bundle: Bundle, probe: Probe, options: CompileOptions) -> PlansSpec:
    """Compile every graph, compare the plans with their graphs, and write `engines/` and their Triton repository.

    probe: the images and texts on which plans and graphs are compared. Raises EngineError or ExportError if this
    machine can't compile at all; FidelityError if a plan misses its threshold. Older plans then stay as they are.
    Raises ExportError as well if TensorRT refuses a graph; the plans of the others and the timing cache are kept then.
    """
    check_machine(options)
    destination = bundle.root / Library.TENSORRT.folder
    values = GraphValues(bundle, probe)
    with replaced_directory(destination, Writer.COMPILE) as folder:
        older = destination / TIMING_CACHE
        cache = older.read_bytes() if older.is_file() else b""
        layers: dict[str, str] = {}
        refused: dict[str, str] = {}
        for name, graph in bundle.spec.graphs.items():
            log.info("ONNX -> TensorRT: %s", name)
            try:
                plan, cache = _build(bundle.graph_file(name), graph, bundle.spec.max_batch, options, cache)
            except ExportError as error:
                refused[name] = str(error)
                continue
            (folder / f"{name}.plan").write_bytes(plan)
        check_any_was_built(bundle, refused)
        (folder / TIMING_CACHE).write_bytes(cache)

        def load(name: str) -> TensorRtEngine:
            engine = TensorRtEngine(folder / f"{name}.plan", version_compatible=options.version_compatible)
            layers[name] = engine.layers()
            return engine

        built = [name for name in bundle.spec.graphs if name not in refused]
        cosines = hold_to_graphs(bundle, values, load, graphs=built)
        record = _record(bundle, folder, options, cosines, layers, refused)
        write_model(folder / PLANS, record)
    check_none_was_refused(bundle, record)
    write_repository(bundle.root, bundle.spec, Flavour.TENSORRT, bundle.root / "triton" / Flavour.TENSORRT)
    return record


def _build(
    onnx_file: Path, graph: GraphSpec, max_batch: int, options: CompileOptions, cache: bytes
) -> tuple[Any, bytes]:
    """Return the plan, a bytes-like object, and the timing cache with this graph's layers added."""
    tensorrt = load_tensorrt()
    profiles = batch_profiles(Library.TENSORRT, max_batch)
    parsed = parse_graph(Library.TENSORRT, tensorrt, onnx_file, graph, profiles)
    config = parsed.config
    if options.version_compatible:
        config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    timing = config.create_timing_cache(cache)
    if timing is None or not config.set_timing_cache(timing, ignore_mismatch=False):  # of another GPU or TensorRT
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return parsed.build(), bytes(memoryview(config.get_timing_cache().serialize()))


def _record(
    bundle: Bundle,
    folder: Path,
    options: CompileOptions,
    cosines: dict[str, float],
    layers: dict[str, str],
    refused: dict[str, str],
) -> PlansSpec:
    gpu = this_gpu()
    return PlansSpec(
        tensorrt=load_tensorrt().__version__,
        gpu=gpu.name,
        compute_capabilities=(gpu.compute_capability,),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        plans={
            name: plan_spec(
                bundle,
                folder,
                Library.TENSORRT,
                name,
                attention_of(layers[name], count_attentions(bundle.graph_file(name))),
                cosine,
            )
            for name, cosine in cosines.items()
        },
        refused=refused,
    )
