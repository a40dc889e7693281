"""One exported graph on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError

_GPU_PROVIDERS = ("CUDAExecutionProvider",)
_CPU_PROVIDER = "CPUExecutionProvider"


class OnnxEngine:
    """Runs a graph on the first of the given providers that this machine has; by default CUDA, then CPU."""

    def __init__(self, path: Path, *, providers: Sequence[str] | None = None, threads: int | None = None) -> None:
        """Load the graph. `threads` bounds the CPU threads of one run; None leaves it to ONNX Runtime.

        Raises EngineError if the file can't be loaded, or uses operators that the provider does not have.
        """
        options = onnxruntime.SessionOptions()
        # The CPU provider's layout optimisations crash on float16 graphs (ONNX Runtime 1.31).
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                path, sess_options=options, providers=list(providers or available_providers())
            )
        except Exception as error:  # the runtime's exception classes share no public base
            raise EngineError(f"ONNX Runtime can't load {path}: {error}") from error
        self.input_names = tuple(node.name for node in self._session.get_inputs())
        self.output_names = tuple(node.name for node in self._session.get_outputs())

    @property
    def provider(self) -> str:
        """Name of the execution provider that runs the graph."""
        return str(self._session.get_providers()[0])

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run the graph. Raises EngineError, with ONNX Runtime's reason, if inputs don't fit."""
        feed = {name: np.ascontiguousarray(inputs[name]) for name in self.input_names}
        try:
            outputs = self._session.run(self.output_names, feed)
        except Exception as error:  # the runtime's exception classes share no public base
            raise EngineError(f"ONNX Runtime could not run the graph: {error}") from error
        return dict(zip(self.output_names, outputs, strict=True))


def available_providers() -> list[str]:
    """Return the execution providers to use here, best first."""
    installed = onnxruntime.get_available_providers()
    return [name for name in _GPU_PROVIDERS if name in installed] + [_CPU_PROVIDER]
