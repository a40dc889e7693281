"""Compile a bundle's ONNX graphs to TensorRT plans, on the machine that serves them.

The code uses the API that TensorRT 10 and 11 share; tests/export/test_tensorrt.py checks every name against both.
Networks are strongly typed: the graph determines each layer's precision (TensorRT 11 has no other kind of network, and
ignores the flag that 10 needs). TF32 is off, so that float32 stays float32.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirrus_client.bundle import Bundle, GraphSpec
from cirrus_client.engines.nvidia import load_tensorrt, tensorrt_log, tensorrt_reason, this_gpu
from cirrus_client.engines.tensorrt import TensorRtEngine
from cirrus_client.errors import ExportError
from cirrus_client.files import sha256_of_file, write_model
from cirrus_client.names import Writer
from cirrus_client.outputs import replaced_directory
from cirrus_client.plans import ENGINES, PLANS, BatchProfile, PlanSpec, PlansSpec, graph_sha256
from cirrus_export.compile.engine_inspector import attention_of, count_attentions
from cirrus_export.compile.ngc_releases import check_release
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
    machine can't compile at all, or TensorRT can't compile a graph; FidelityError if a plan misses its threshold. Older
    plans then stay as they are.
    """
    check_machine(options)
    destination = bundle.root / ENGINES
    values = GraphValues(bundle, probe)
    with replaced_directory(destination, Writer.COMPILE) as folder:
        older = destination / TIMING_CACHE
        cache = older.read_bytes() if older.is_file() else b""
        layers: dict[str, str] = {}
        for name, graph in bundle.spec.graphs.items():
            log.info("ONNX -> TensorRT: %s", name)
            plan, cache = _build(bundle.graph_file(name), graph, bundle.spec.max_batch, options, cache)
            (folder / f"{name}.plan").write_bytes(plan)
        (folder / TIMING_CACHE).write_bytes(cache)

        def load(name: str) -> TensorRtEngine:
            engine = TensorRtEngine(folder / f"{name}.plan", version_compatible=options.version_compatible)
            layers[name] = engine.layers()
            return engine

        cosines = hold_to_graphs(bundle, values, load)
        record = _record(bundle, folder, options, cosines, layers)
        write_model(folder / PLANS, record)
    write_repository(bundle.root, bundle.spec, Flavour.TENSORRT, bundle.root / "triton" / Flavour.TENSORRT)
    return record


def batch_profile(max_batch: int) -> BatchProfile:
    """Return the batch sizes that plans accept: from 1 to the bundle's limit, tuned for half of the limit."""
    return BatchProfile(smallest=1, tuned=max(1, max_batch // 2), largest=max_batch)


def _build(
    onnx_file: Path, graph: GraphSpec, max_batch: int, options: CompileOptions, cache: bytes
) -> tuple[Any, bytes]:
    """Return the plan, a bytes-like object, and the timing cache with this graph's layers added."""
    tensorrt = load_tensorrt()
    builder = tensorrt.Builder(tensorrt_log(tensorrt))
    network = builder.create_network(flags=1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, tensorrt_log(tensorrt))
    if not parser.parse_from_file(str(onnx_file)):
        reasons = "; ".join(parser.get_error(position).desc() for position in range(parser.num_errors))
        raise ExportError(f"TensorRT {tensorrt.__version__} can't read {onnx_file}: {reasons}")
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.add_optimization_profile(_profile(builder, graph, batch_profile(max_batch)))
    timing = config.create_timing_cache(cache)
    if timing is None or not config.set_timing_cache(timing, ignore_mismatch=False):  # of another GPU or TensorRT
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = tensorrt_reason(tensorrt)
        raise ExportError(f"TensorRT {tensorrt.__version__} can't compile {onnx_file}: {reason}")
    return plan, bytes(memoryview(config.get_timing_cache().serialize()))


def _profile(builder: Any, graph: GraphSpec, batch: BatchProfile) -> Any:
    profile = builder.create_optimization_profile()
    for spec in graph.inputs:
        shapes = ((rows, *spec.shape) for rows in (batch.smallest, batch.tuned, batch.largest))
        profile.set_shape(spec.name, *shapes)
    return profile


def _record(
    bundle: Bundle, folder: Path, options: CompileOptions, cosines: dict[str, float], layers: dict[str, str]
) -> PlansSpec:
    gpu = this_gpu()
    return PlansSpec(
        tensorrt=load_tensorrt().__version__,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        plans={
            name: PlanSpec(
                file=f"{ENGINES}/{name}.plan",
                sha256=sha256_of_file(folder / f"{name}.plan"),
                graph_sha256=graph_sha256(bundle.spec, name),
                batch=batch_profile(bundle.spec.max_batch),
                attention=attention_of(layers[name], count_attentions(bundle.graph_file(name))),
                cosine_min=cosines[name],
            )
            for name in bundle.spec.graphs
        },
    )
