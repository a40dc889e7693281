"""ONNX -> TensorRT plans: strongly typed, for the batch range of the bundle, held to the ONNX graphs they come from.

Precision is in the graphs; TensorRT only compiles. TensorRT 11 knows nothing but strongly typed networks, TensorRT 10
takes the flag for them (NVIDIA TensorRT documentation, "Strongly Typed Networks").
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import Bundle, GraphSpec
from cirrus_client.engines.engine import Engine
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine
from cirrus_client.engines.plans import RECORD, Plan, Plans
from cirrus_client.errors import EngineError, FidelityError
from cirrus_client.files import replace_directory, write_atomically, write_model
from cirrus_client.gpu import query_gpu
from cirrus_export.fidelity import THRESHOLDS, cosine_min
from cirrus_export.repository import Flavour, write_repository

USUAL_BATCH = 32
_TIMING_CACHE = "timing.cache"
_CHECKED_BATCH = 4
_ATTENTION_IN_ONNX = ("Softmax", "Attention")
_FUSED_ATTENTION = re.compile(r"mha|attention|sdpa", re.IGNORECASE)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileOptions:
    """version_compatible: for later TensorRTs of the same major version. hardware_compatible: for Ampere and later."""

    version_compatible: bool = False
    hardware_compatible: bool = False


def installed_tensorrt() -> str:
    """Return the version of the TensorRT that would compile. Raises EngineError if there is none, or no GPU."""
    if importlib.util.find_spec("tensorrt") is None:
        raise EngineError("TensorRT is not installed: pip install 'cirrus-cir[gpu]' on the machine that serves")
    query_gpu("name")
    import tensorrt as trt

    return str(trt.__version__)


def compile_plans(bundle: Bundle, options: CompileOptions = CompileOptions()) -> Plans:
    """Compile every graph of a bundle, hold each plan to its graph, and write the Triton repository that serves them.

    Writes `engines/<graph>.plan`, `engines/plans.json` and `triton/tensorrt`; an older set is replaced as a whole. The
    timing cache in `engines` makes the next run shorter. Raises EngineError if TensorRT or a GPU is missing or a graph
    can't be compiled, and FidelityError, leaving the older set, if a plan does not answer as its graph does.
    """
    version = installed_tensorrt()
    gpu, capability = query_gpu("name", "compute_cap")
    engines = bundle.root / "engines"
    kept = engines / _TIMING_CACHE
    timings = kept.read_bytes() if kept.is_file() else b""
    plans: dict[str, Plan] = {}
    with replace_directory(engines) as folder:
        for name, graph in bundle.spec.graphs.items():
            log.info("ONNX -> TensorRT %s: %s", version, name)
            batch = (1, min(USUAL_BATCH, bundle.spec.max_batch), bundle.spec.max_batch)
            plan, timings = _compile(bundle.graph_file(name), graph, batch, options, timings)
            write_atomically(folder / f"{name}.plan", plan)
            layers = _layers(plan, options)
            plans[name] = Plan(
                file=f"{name}.plan",
                sha256=hashlib.sha256(plan).hexdigest(),
                batch=batch,
                layers=len(layers),
                attention_fused=attention_fused(bundle.graph_file(name), layers),
            )
        record = Plans(
            tensorrt=version,
            gpu=gpu,
            compute_capability=capability,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
            plans=plans,
        )
        write_model(folder / RECORD, record)
        write_atomically(folder / _TIMING_CACHE, timings)
        _check_fidelity(bundle, folder)
    write_repository(bundle.root, bundle.spec, Flavour.TENSORRT, bundle.root / "triton" / Flavour.TENSORRT)
    return record


def attention_fused(graph: Path, layers: list[str]) -> bool | None:
    """Return whether a plan's layers show fused attention; None if its graph has no attention.

    layers: as the engine inspector names them. TensorRT names the layers of a fused multi-head attention after it
    (`_gemm_mha_v2`, `mha`, `sdpa`); what is not fused appears as separate matrix products and a softmax.
    """
    import onnx

    model = onnx.load(graph, load_external_data=False)
    if not any(node.op_type in _ATTENTION_IN_ONNX for node in model.graph.node):
        return None
    return any(_FUSED_ATTENTION.search(layer) for layer in layers)


def layer_names(inspected: str) -> list[str]:
    """Return the layers' names from the engine inspector's JSON.

    With detailed profiling verbosity a layer is an object with the key "Name" and, for generated kernels, "TacticName";
    otherwise it is its name alone (NVIDIA TensorRT documentation, "Engine Inspector").
    """
    layers = json.loads(inspected)["Layers"]
    return [
        layer if isinstance(layer, str) else f"{layer['Name']} {layer.get('TacticName', '')}".strip()
        for layer in layers
    ]


def _compile(
    path: Path, graph: GraphSpec, batch: tuple[int, int, int], options: CompileOptions, timings: bytes
) -> tuple[bytes, bytes]:
    """The plan, and the timing cache with what was learnt for it."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise EngineError(f"TensorRT {trt.__version__} can't read {path}: {reasons}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    cache = config.create_timing_cache(timings)
    config.set_timing_cache(cache, ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    for tensor in graph.inputs:
        profile.set_shape(tensor.name, *((size, *tensor.shape) for size in batch))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT {trt.__version__} can't compile {path}: its log above says why")
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def _layers(plan: bytes, options: CompileOptions) -> list[str]:
    import tensorrt as trt

    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    runtime.engine_host_code_allowed = options.version_compatible
    engine = runtime.deserialize_cuda_engine(plan)
    inspector = engine.create_engine_inspector()
    return layer_names(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _check_fidelity(bundle: Bundle, folder: Path) -> None:
    from cirrus_client.engines.tensorrt_runtime import TensorRtEngine

    for name in bundle.spec.graphs:
        original = OnnxRuntimeEngine(bundle.graph_file(name), bundle.spec.precision)
        check_agreement(name, original, TensorRtEngine(folder / f"{name}.plan"), bundle)


def check_agreement(name: str, original: Engine, compiled: Engine, bundle: Bundle) -> None:
    """Raise FidelityError if two engines' outputs for the same noise are further apart than the precision allows."""
    inputs = _noise(bundle.spec.graphs[name])
    expected, found = original(inputs), compiled(inputs)
    for output, values in expected.items():
        cosine = cosine_min(values, found[output])
        if not cosine >= THRESHOLDS[bundle.spec.precision].cosine_min:
            raise FidelityError(
                f"the plan of {name} does not answer as its graph does: the cosine of {output} is {cosine:.6f}, under "
                f"{THRESHOLDS[bundle.spec.precision].cosine_min}; no plan was written"
            )


def _noise(graph: GraphSpec) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    return {
        tensor.name: generator.standard_normal((_CHECKED_BATCH, *tensor.shape), dtype=np.float32)
        if tensor.dtype == "float32"
        else np.ones((_CHECKED_BATCH, *tensor.shape), dtype=np.int64)
        for tensor in graph.inputs
    }
