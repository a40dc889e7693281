"""Run TensorRT plans on the GPU, without torch."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import Bundle, Precision, TensorSpec
from cirrus_client.engines.cuda_memory import TensorMemory
from cirrus_client.engines.engine import Engine, tensor_spec
from cirrus_client.engines.kinds import EngineKind
from cirrus_client.engines.nvidia import cuda_result, load_cuda, load_library, tensorrt_log, tensorrt_reason, this_gpu
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError
from cirrus_client.plans import Library, PlansSpec, compile_again, plan_file, read_plans, refusal


class TensorRtKind(EngineKind):
    """TensorRT plans that `cirrus compile` built from a bundle's graphs."""

    def runs(self, precision: Precision) -> bool:
        """See `EngineKind.runs`. TensorRT runs plans, not ONNX files; `open_graph` prefers a plan that runs here."""
        return False

    def load(self, path: Path, precision: Precision, *, threads: int | None, bulk: bool) -> TensorRtEngine:
        """Raise EngineError: plans belong to a bundle, so use `load_graph`."""
        raise EngineError("TensorRT runs the plans of a bundle, not ONNX files: see `cirrus compile`")

    def load_graph(self, bundle: Bundle, graph: str, *, threads: int | None, bulk: bool) -> TensorRtEngine:
        """See `EngineKind.load_graph`, and `TensorRtEngine.of`."""
        return TensorRtEngine.of(bundle, graph)


class TensorRtEngine(Engine):
    """Runs a plan. Calls from several threads run one after the other.

    A batch runs in the plan's first optimization profile that takes it; the last takes the largest. Memory for the
    largest batch is allocated when the plan is loaded.
    """

    library: ClassVar[Library] = Library.TENSORRT

    def __init__(self, path: Path, *, version_compatible: bool = False) -> None:
        """Load a plan.

        version_compatible: the plan contains its own TensorRT runtime, which is code that this process will run.
        Raises EngineError if TensorRT, CUDA or a GPU is missing, or TensorRT refuses the plan.
        """
        super().__init__()
        self._tensorrt = tensorrt = load_library(self.library)
        title = self.library.label
        self._cuda = load_cuda()
        gpu = this_gpu()
        self._runtime = tensorrt.Runtime(tensorrt_log(tensorrt))
        self._runtime.engine_host_code_allowed = version_compatible
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"{title} {tensorrt.__version__} can't load {path}: {self._reason()}")
        names = [self._engine.get_tensor_name(position) for position in range(self._engine.num_io_tensors)]
        taken = {name for name in names if self._engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT}
        self.inputs = tuple(self._spec(tensorrt, name) for name in names if name in taken)
        self.outputs = tuple(self._spec(tensorrt, name) for name in names if name not in taken)
        profiles = range(self._engine.num_optimization_profiles)
        self._shapes = [self._largest_shapes(profile) for profile in profiles]
        self._largest = [min(shape[0] for shape in shapes.values()) for shapes in self._shapes]
        self.largest_batch = self._largest[-1]
        self._contexts = self._new_contexts(path)
        if None in self._contexts:
            raise EngineError(f"{title} can't run {path} on {gpu.name}: {self._reason()}")
        self.device = f"{title} {tensorrt.__version__}, {gpu.name}"
        self._turns = threading.Lock()
        self._take_memory()

    @classmethod
    def of(cls, bundle: Bundle, graph: str) -> Self:
        """Load a graph's plan from a bundle.

        Raises BundleError if the plan is missing or damaged, EngineError if it was built for another TensorRT or GPU,
        or contains code and the bundle was opened without `trust_plans`.
        """
        record = read_plans(bundle.root, cls.library)
        path = plan_file(bundle, record, graph)
        check_runs_here(record, bundle.root)
        if record.version_compatible and not bundle.trusts_plans:
            raise EngineError(
                f"plans of {bundle.root}: they are version-compatible, so they contain code that would run here; if "
                "you trust whoever compiled them, allow it with --trust-plans, or Bundle.open(..., trust_plans=True)"
            )
        return cls(path, version_compatible=record.version_compatible)

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        rows = len(inputs[self.inputs[0].name])
        if not 0 < rows <= self.largest_batch:
            raise EngineError(f"a batch of {rows}; the plan takes 1 to {self.largest_batch}")
        with self._turns:
            return self._run(inputs, rows)

    def layers(self) -> str:
        """Return the engine inspector's JSON of the plan's layers."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._tensorrt.LayerInformationFormat.JSON))

    def _new_contexts(self, path: Path) -> list[Any]:
        """Return an execution context for each of the plan's optimization profiles, in their order."""
        return [self._engine.create_execution_context() for _ in self._largest]

    def _run(self, inputs: Arrays, rows: int) -> dict[str, NDArray[Any]]:
        context = self._contexts[next(at for at, largest in enumerate(self._largest) if rows <= largest)]
        self._set_shapes(context, {name: array.shape for name, array in inputs.items()})
        for spec in self.inputs:
            self._memory[spec.name].send(inputs[spec.name], self._stream)
        if not context.execute_async_v3(int(self._stream)):
            raise EngineError(f"TensorRT could not run the graph: {self._reason()}")
        # Output shapes may contain other dynamic dimensions, so ask the context, not the spec.
        shapes = {spec.name: tuple(context.get_tensor_shape(spec.name)) for spec in self.outputs}
        for spec in self.outputs:
            self._memory[spec.name].fetch(_size(shapes[spec.name], spec), self._stream)
        cuda_result(self._cuda.cudaStreamSynchronize(self._stream))
        return {
            spec.name: self._memory[spec.name].received(shapes[spec.name], spec.dtype.value) for spec in self.outputs
        }

    def _set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"TensorRT refuses input {name} {list(shape)}: {self._reason()}")

    def _take_memory(self) -> None:
        """Allocate inputs and outputs once. Their addresses stay the same, so a call only sets the shapes."""
        self._stream = cuda_result(self._cuda.cudaStreamCreate())
        weakref.finalize(self, self._cuda.cudaStreamDestroy, self._stream)
        for profile, context in enumerate(self._contexts):
            if not context.set_optimization_profile_async(profile, int(self._stream)):
                raise EngineError(f"TensorRT refuses profile {profile} of its plan: {self._reason()}")
        context = self._contexts[-1]
        self._set_shapes(context, self._shapes[-1])
        self._memory = {
            spec.name: TensorMemory(self._cuda, _size(tuple(context.get_tensor_shape(spec.name)), spec))
            for spec in (*self.inputs, *self.outputs)
        }
        for context in self._contexts:
            for name, memory in self._memory.items():
                if not context.set_tensor_address(name, memory.device):
                    raise EngineError(f"TensorRT refuses memory for {name}: {self._reason()}")

    def _spec(self, tensorrt: Any, name: str) -> TensorSpec:
        kind = np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name))).name
        return tensor_spec(name, kind, tuple(self._engine.get_tensor_shape(name)))

    def _largest_shapes(self, profile: int) -> dict[str, tuple[int, ...]]:
        return {spec.name: tuple(self._engine.get_tensor_profile_shape(spec.name, profile)[-1]) for spec in self.inputs}

    def _reason(self) -> str:
        return tensorrt_reason(self._tensorrt)


def check_runs_here(record: PlansSpec, root: Path) -> None:
    """Raise EngineError if plans can't run on this machine's library and GPU, or one of these is missing.

    root: the bundle that they belong to, for messages.
    """
    reason = refusal(record, load_library(record.library).__version__, this_gpu())
    if reason is not None:
        raise EngineError(f"plans of {root}: {reason}; compile them again {compile_again(root, record.library)}")


def _size(shape: tuple[int, ...], spec: TensorSpec) -> int:
    return prod(shape) * np.dtype(spec.dtype.value).itemsize
