"""Run graphs on OpenVINO, Intel's runtime for CPUs. It runs on AMD's CPUs as well."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise, starmap
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from cirrus_client.bundle import Precision, TensorSpec
from cirrus_client.cores import quota
from cirrus_client.engines.engine import Engine, tensor_spec
from cirrus_client.engines.kinds import EngineKind
from cirrus_client.engines.onnx_runtime import on_gpu
from cirrus_client.engines.openvino_sums import keep_sums
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError
from cirrus_client.forks import MadeHere

_DEVICE = "CPU"
# By default OpenVINO computes float32 graphs in bfloat16 on CPUs that have it, which changes embeddings silently.
_ARITHMETIC = {Precision.FP32: "f32", Precision.FP16: "f16", Precision.BF16: "bf16"}
_NUMPY_NAMES = {"f32": "float32", "f64": "float64", "i64": "int64", "i32": "int32"}
# Two: while one call computes, inputs and outputs of the next are copied.
_REQUESTS = 2
_first_use = threading.Lock()


class OpenVinoKind(EngineKind):
    """OpenVINO on the CPU."""

    def runs(self, precision: Precision) -> bool:
        """See `EngineKind.runs`. False if there is a GPU, which is faster."""
        return supports(precision) and not on_gpu()

    def load(self, path: Path, precision: Precision, *, threads: int | None, bulk: bool) -> OpenVinoEngine:
        """See `EngineKind.load`."""
        return OpenVinoEngine(path, precision, threads=threads, bulk=bulk)


class OpenVinoEngine(Engine):
    """Runs a graph on the CPU, in exactly the precision of its bundle.

    Calls from several threads share a pool of OpenVINO inference requests. A call waits until one is idle.
    """

    def __init__(self, path: Path, precision: Precision, *, threads: int | None = None, bulk: bool = False) -> None:
        """Load the graph.

        threads: CPU threads per run; None leaves it to OpenVINO, within the container's quota. bulk: split each batch
        among streams that have cores of their own, and wait for each other once per batch instead of at every layer.
        Raises EngineError if the file can't be loaded, or this CPU does not support the precision.
        """
        super().__init__()
        if not supports(precision):
            raise EngineError(f"OpenVINO has no {precision} arithmetic on this CPU")
        arithmetic = _arithmetic(precision)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": arithmetic,
            "PERFORMANCE_HINT": "THROUGHPUT" if bulk else "LATENCY",
        }
        if number := threads or quota():
            options["INFERENCE_NUM_THREADS"] = number
        try:
            graph = _core().read_model(str(path))
            if precision is Precision.BF16:
                keep_sums(_core(), graph)
            model = _core().compile_model(graph, _DEVICE, options)
        except Exception as error:  # the runtime raises plain RuntimeError for everything
            raise EngineError(f"OpenVINO can't load {path}: {error}") from error
        self.inputs = tuple(_spec(port) for port in model.inputs)
        self.outputs = tuple(_spec(port) for port in model.outputs)
        self._streams = int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if bulk else 1
        self._pool = _RequestPool(model, max(self._streams, _REQUESTS))
        version = openvino.get_version().split("-")[0]
        mixed = "int8 and " if precision is Precision.INT8 else ""
        self.device = f"OpenVINO {version}, {_DEVICE}, {mixed}{arithmetic}"

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        rows = len(next(iter(inputs.values())))
        parts = min(self._streams, rows)
        ends = [rows * number // parts for number in range(parts + 1)]
        with self._pool.take(parts) as requests:
            try:
                for request, part in zip(requests, starmap(slice, pairwise(ends)), strict=True):
                    request.start_async({name: values[part] for name, values in inputs.items()}, share_inputs=True)
                for request in requests:
                    request.wait()
                return {
                    spec.name: np.concatenate([request.get_output_tensor(position).data for request in requests])
                    for position, spec in enumerate(self.outputs)
                }
            except Exception as error:  # as above
                raise EngineError(f"OpenVINO could not run the graph: {error}") from error


class _RequestPool:
    """The inference requests of a model. Each is used by one call at a time. Threads may share the pool."""

    def __init__(self, model: openvino.CompiledModel, size: int) -> None:
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(size):
            self._idle.put(model.create_infer_request())
        self._taking = threading.Lock()

    @contextmanager
    def take(self, count: int) -> Iterator[list[openvino.InferRequest]]:
        """Wait for `count` idle requests and yield them. They are idle again when the block ends.

        Only one call at a time takes requests. Otherwise two calls could each hold half and wait for the rest forever.
        """
        with self._taking:
            requests = [self._idle.get() for _ in range(count)]
        try:
            yield requests
        finally:
            for request in requests:
                with suppress(Exception):  # a request that failed raises its error again
                    request.wait()
                self._idle.put(request)


def supports(precision: Precision) -> bool:
    """Return whether this CPU computes a precision in hardware."""
    return precision is not Precision.FP8 and precision.name in capabilities()


def _arithmetic(precision: Precision) -> str:
    """Return the arithmetic of layers that are not quantised. Quantised layers have their own in the graph."""
    if precision is Precision.INT8:
        return "bf16" if Precision.BF16.name in capabilities() else "f32"
    return _ARITHMETIC[precision]


def capabilities() -> list[str]:
    """Return the precisions that this CPU computes in hardware, by OpenVINO's names, like "BF16"."""
    return list(_core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))


def _core() -> openvino.Core:
    """Return this process's OpenVINO core. Raises EngineError in a process that was forked after it was made."""
    with _first_use:
        made_here, core = _only_core()
    made_here.check(EngineError)
    return core


@cache
def _only_core() -> tuple[MadeHere, openvino.Core]:
    """Return one core for the life of the process.

    A core's CPU plugin installs its own signal stack, and restores the previous one when it is destroyed. After two
    cores, the thread is left with a freed stack, and the next signal that Python handles crashes the process.
    """
    return MadeHere("OpenVINO"), openvino.Core()


def _spec(port: Any) -> TensorSpec:
    kind = port.element_type.get_type_name()
    shape = tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
    return tensor_spec(port.any_name, _NUMPY_NAMES.get(kind, kind), shape)
