"""Compiled plans on TensorRT. Buffers and copies are Polygraphy's, which needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray
from polygraphy.cuda import DeviceArray, Stream

from cirrus_client.engines.engine import Engine, tensor_spec
from cirrus_client.engines.plans import read_plans
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError
from cirrus_client.gpu import compute_capability


class TensorRtEngine(Engine):
    """Runs a plan of a bundle on the GPU. One thread at a time: a context has one set of buffers."""

    def __init__(self, plan: Path) -> None:
        """Load `engines/<graph>.plan`. Raises EngineError if it was compiled for another TensorRT or GPU."""
        plans = read_plans(plan.parent)
        plans.check_here(tensorrt=trt.__version__, compute_capability=compute_capability())
        self._logger = trt.Logger(trt.Logger.WARNING)
        runtime = trt.Runtime(self._logger)
        runtime.engine_host_code_allowed = plans.version_compatible
        self._engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EngineError(f"TensorRT {trt.__version__} can't load {plan}: its log says why")
        self._context = self._engine.create_execution_context()
        self._stream = Stream()
        self._buffers: dict[str, DeviceArray] = {}
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        specs = {name: self._spec(name) for name in names}
        given = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self.inputs = tuple(specs[name] for name in names if name in given)
        self.outputs = tuple(specs[name] for name in names if name not in given)
        self.device = f"TensorRT {trt.__version__}, {plans.gpu}"

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise EngineError(f"{name} of shape {list(array.shape)} is outside of the plan's optimisation profile")
            self._buffer(name, array.shape, array.dtype).copy_from(array, self._stream)
        outputs = {
            spec.name: np.empty(tuple(self._context.get_tensor_shape(spec.name)), dtype=spec.dtype.value)
            for spec in self.outputs
        }
        for name, array in outputs.items():
            self._buffer(name, array.shape, array.dtype)
        if not self._context.execute_async_v3(self._stream.ptr):
            raise EngineError("TensorRT could not run the plan: its log says why")
        for name, array in outputs.items():
            self._buffers[name].copy_to(array, self._stream)
        self._stream.synchronize()
        return outputs

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        if name not in self._buffers:
            self._buffers[name] = DeviceArray(shape, dtype)
        self._buffers[name].resize(shape)
        self._context.set_tensor_address(name, self._buffers[name].ptr)
        return self._buffers[name]

    def _spec(self, name: str) -> Any:
        dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name
        return tensor_spec(name, dtype, tuple(self._engine.get_tensor_shape(name)))
