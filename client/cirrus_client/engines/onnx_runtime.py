"""Graphs on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from cirrus_client.bundle import Precision, TensorSpec
from cirrus_client.engines.engine import Engine, tensor_spec
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError

_GPU_PROVIDERS = ("CUDAExecutionProvider",)
_CPU_PROVIDER = "CPUExecutionProvider"
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


class OnnxRuntimeEngine(Engine):
    """Runs a graph on the first of the given providers that this machine has; by default CUDA, then CPU."""

    def __init__(
        self, path: Path, precision: Precision, *, providers: Sequence[str] | None = None, threads: int | None = None
    ) -> None:
        """Load the graph.

        precision: that of its bundle. threads: CPU threads of one run; None leaves it to ONNX Runtime.
        Raises EngineError if the file can't be loaded, or uses operators that the provider does not have.
        """
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
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                path, sess_options=options, providers=list(providers or available_providers())
            )
        except Exception as error:  # the runtime's exception classes share no public base
            raise EngineError(f"ONNX Runtime can't load {path}: {error}") from error
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.device = f"ONNX Runtime {onnxruntime.__version__}, {provider}"

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        try:
            outputs = self._session.run(None, dict(inputs))
        except Exception as error:  # the runtime's exception classes share no public base
            raise EngineError(f"ONNX Runtime could not run the graph: {error}") from error
        return {spec.name: output for spec, output in zip(self.outputs, outputs, strict=True)}


def available_providers() -> list[str]:
    """Return the execution providers to use here, best first."""
    installed = onnxruntime.get_available_providers()
    return [name for name in _GPU_PROVIDERS if name in installed] + [_CPU_PROVIDER]


def _spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return tensor_spec(node.name, _NUMPY_NAMES.get(kind, kind), tuple(node.shape))
