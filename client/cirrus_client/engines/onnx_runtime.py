"""Run graphs on ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from cirrus_client.bundle import Precision, TensorSpec
from cirrus_client.cores import quota
from cirrus_client.engines.engine import Engine, tensor_spec
from cirrus_client.engines.kinds import EngineKind
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError
from cirrus_client.extras import need
from cirrus_client.telemetry import switch_off
from cirrus_client.user_cache import user_cache

_GPU_PROVIDERS = ("CUDAExecutionProvider",)
_CPU_PROVIDER = "CPUExecutionProvider"
TENSORRT_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", _CPU_PROVIDER)
_NUMPY_NAMES = {"float": "float32", "double": "float64"}
log = logging.getLogger(__name__)


class OnnxRuntimeKind(EngineKind):
    """ONNX Runtime on CUDA, or on the CPU."""

    def runs(self, precision: Precision) -> bool:
        """See `EngineKind.runs`. On a CPU ONNX Runtime has no bfloat16."""
        return precision is not Precision.BF16 or on_gpu()

    def load(self, path: Path, precision: Precision, *, threads: int | None, bulk: bool) -> OnnxRuntimeEngine:
        """See `EngineKind.load`."""
        return OnnxRuntimeEngine(path, precision, threads=threads)


class OnnxRuntimeTensorRtKind(EngineKind):
    """ONNX Runtime's TensorRT provider, which builds an engine while it loads a graph. Used only if it is named.

    It has no option against TF32: on a GPU that has it, float32 is less exact than on other engines.
    """

    def runs(self, precision: Precision) -> bool:
        """See `EngineKind.runs`."""
        return False

    def load(self, path: Path, precision: Precision, *, threads: int | None, bulk: bool) -> OnnxRuntimeEngine:
        """See `EngineKind.load`."""
        return OnnxRuntimeEngine(path, precision, providers=TENSORRT_PROVIDERS, threads=threads)


class OnnxRuntimeEngine(Engine):
    """Runs a graph on the first available provider: CUDA, then CPU, unless others are given.

    Calls from several threads run at the same time.
    """

    def __init__(
        self, path: Path, precision: Precision, *, providers: Sequence[str] | None = None, threads: int | None = None
    ) -> None:
        """Load the graph.

        precision: the precision of its bundle. threads: CPU threads per run; None leaves it to ONNX Runtime, within the
        container's quota. The TensorRT provider builds its engine here, which takes minutes, and keeps it in the user's
        cache folder.
        Raises EngineError if the file can't be loaded, uses operators that the provider does not have, or if the first
        of the given providers is not installed or can't start.
        """
        super().__init__()
        onnxruntime = _onnxruntime()
        if providers and providers[0] not in onnxruntime.get_available_providers():
            raise EngineError(
                f"this ONNX Runtime has no {providers[0]}: pip install 'cirrus-cir[gpu]' on an NVIDIA GPU"
            )
        options = onnxruntime.SessionOptions()
        # The CPU provider's layout optimisations crash on float16 graphs (ONNX Runtime 1.31).
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        # Threads that spin between runs keep the cores from the next graph and from decoding: a query of three graphs
        # took 204 ms on two cores instead of 97.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if precision is Precision.FP8:
            # It moves float8 tensors through operators that do not take them (ONNX Runtime 1.31).
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.intra_op_num_threads = threads or quota() or 0
        try:
            self._session = onnxruntime.InferenceSession(
                path,
                sess_options=options,
                providers=[_with_options(name) for name in providers or available_providers()],
            )
        except Exception as error:  # the runtime's exception classes share no public base
            raise EngineError(f"ONNX Runtime can't load {path}: {error}") from error
        started = self._session.get_providers()[0]
        if providers and started != providers[0]:
            raise EngineError(f"{providers[0]} could not start for {path}, ONNX Runtime fell back to {started}")
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self.device = f"ONNX Runtime {onnxruntime.__version__}, {started.removesuffix('ExecutionProvider')}"

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        try:
            outputs = self._session.run(None, dict(inputs))
        except Exception as error:  # the runtime's exception classes share no public base
            raise EngineError(f"ONNX Runtime could not run the graph: {error}") from error
        return {spec.name: output for spec, output in zip(self.outputs, outputs, strict=True)}


def on_gpu() -> bool:
    """Return whether graphs run on a GPU by default."""
    return available_providers()[0] != _CPU_PROVIDER


def available_providers() -> list[str]:
    """Return the execution providers to use on this machine, fastest first."""
    installed = _onnxruntime().get_available_providers()
    return [name for name in _GPU_PROVIDERS if name in installed] + [_CPU_PROVIDER]


@cache
def _onnxruntime() -> ModuleType:
    """Import ONNX Runtime when a graph is first loaded. Clients of a server do not need it.

    The GPU build does not find pip's CUDA libraries by itself: they are loaded before it is used. See "Preload DLLs",
    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    """
    switch_off()
    onnxruntime = need("onnxruntime", "running a graph in this process")
    if _GPU_PROVIDERS[0] in onnxruntime.get_available_providers():
        with contextlib.redirect_stdout(io.StringIO()) as complaints:  # it prints which libraries are missing
            onnxruntime.preload_dlls()
        if complaints.getvalue():
            log.warning("ONNX Runtime on CUDA: %s", complaints.getvalue().strip())
    return onnxruntime


def _with_options(provider: str) -> str | tuple[str, dict[str, str]]:
    """Return a provider with its options. On CUDA, float32 stays float32. TensorRT caches its engines.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html: use_tf32
    https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    """
    if provider in _GPU_PROVIDERS:
        return provider, {"use_tf32": "0"}
    if provider != TENSORRT_PROVIDERS[0]:
        return provider
    kept = user_cache("tensorrt")
    if kept is None:
        return provider
    return provider, {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(kept)}


def _spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return tensor_spec(node.name, _NUMPY_NAMES.get(kind, kind), tuple(node.shape))
