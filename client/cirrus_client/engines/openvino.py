"""Graphs on OpenVINO, Intel's runtime for CPUs; AMD's run it as well."""

from __future__ import annotations

from functools import cache
from itertools import pairwise, starmap
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from cirrus_client.bundle import Precision, TensorSpec
from cirrus_client.engines.engine import Engine, tensor_spec
from cirrus_client.engines.openvino_sums import keep_sums
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError

_DEVICE = "CPU"
# Left alone, OpenVINO computes float32 graphs in bfloat16 on every CPU that can: silently other embeddings.
_ARITHMETIC = {Precision.FP32: "f32", Precision.FP16: "f16", Precision.BF16: "bf16"}
_NUMPY_NAMES = {"f32": "float32", "f64": "float64", "i64": "int64", "i32": "int32"}


class OpenVinoEngine(Engine):
    """Runs a graph on the CPU, in the arithmetic of its bundle's precision and no other."""

    def __init__(self, path: Path, precision: Precision, *, threads: int | None = None, bulk: bool = False) -> None:
        """Load the graph.

        threads: CPU threads of one run; None leaves it to OpenVINO. bulk: a batch is split among streams, each on cores
        of its own: they wait for each other once a batch, and not at every layer.
        Raises EngineError if the file can't be loaded, or this CPU does not have the precision's arithmetic.
        """
        if not supports(precision):
            raise EngineError(f"OpenVINO has no {precision} arithmetic on this CPU")
        arithmetic = _arithmetic(precision)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": arithmetic,
            "PERFORMANCE_HINT": "THROUGHPUT" if bulk else "LATENCY",
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            graph = _core().read_model(str(path))
            if precision is Precision.BF16:
                keep_sums(_core(), graph)
            model = _core().compile_model(graph, _DEVICE, options)
        except Exception as error:  # the runtime raises plain RuntimeError for everything
            raise EngineError(f"OpenVINO can't load {path}: {error}") from error
        self.inputs = tuple(_spec(port) for port in model.inputs)
        self.outputs = tuple(_spec(port) for port in model.outputs)
        jobs = model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if bulk else 1
        self._requests = [model.create_infer_request() for _ in range(jobs)]
        version = openvino.get_version().split("-")[0]
        mixed = "int8 and " if precision is Precision.INT8 else ""
        self.device = f"OpenVINO {version}, {_DEVICE}, {mixed}{arithmetic}"

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        rows = len(next(iter(inputs.values())))
        requests = self._requests[:rows]
        ends = [rows * number // len(requests) for number in range(len(requests) + 1)]
        try:
            for request, part in zip(requests, starmap(slice, pairwise(ends)), strict=True):
                request.start_async({name: values[part] for name, values in inputs.items()}, share_inputs=True)
            for request in requests:
                request.wait()
        except Exception as error:  # as above
            raise EngineError(f"OpenVINO could not run the graph: {error}") from error
        return {
            spec.name: np.concatenate([request.get_output_tensor(position).data for request in requests])
            for position, spec in enumerate(self.outputs)
        }


def supports(precision: Precision) -> bool:
    """Whether this CPU has the arithmetic of a precision in hardware."""
    return precision is not Precision.FP8 and precision.name in capabilities()


def _arithmetic(precision: Precision) -> str:
    """What is computed in outside of quantised layers, which carry their own precision."""
    if precision is Precision.INT8:
        return "bf16" if Precision.BF16.name in capabilities() else "f32"
    return _ARITHMETIC[precision]


def capabilities() -> list[str]:
    """OpenVINO's names of the arithmetic that this CPU has in hardware."""
    return list(_core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))


@cache
def _core() -> openvino.Core:
    """One for the life of the process.

    A core's CPU plugin installs a signal stack of its own, and puts back the one it found when it goes. Where two have
    lived, the thread is left with a freed one, and the next signal that Python handles is a segmentation fault.
    """
    return openvino.Core()


def _spec(port: Any) -> TensorSpec:
    kind = port.element_type.get_type_name()
    shape = tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
    return tensor_spec(port.any_name, _NUMPY_NAMES.get(kind, kind), shape)
