"""The interface of engines. An engine loads one graph and maps named arrays to named arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import DYNAMIC, DType, TensorSpec
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError
from cirrus_client.forks import MadeHere

_SAMPLED = 16
"""Size of a dynamic dimension in a sample: the tokens of a short text."""


class EngineName(StrEnum):
    """Engines of this tree.

    ONNXRUNTIME_TENSORRT: TensorRT builds its engine while ONNX Runtime loads a graph. TENSORRT: runs plans that
    `cirrus compile` built. TENSORRT_RTX: runs plans that `cirrus compile --for` built.
    """

    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_TENSORRT = "onnxruntime-tensorrt"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class Engine(ABC):
    """A loaded graph.

    Threads may share an engine: each call returns its own answer. An engine decides whether calls run at the same time
    or one after the other. A process that is forked after the graph was loaded gets an EngineError: use "spawn".

    inputs, outputs: tensors as the loaded graph declares them. device: engine, version and hardware for reports, like
    "OpenVINO 2026.4.1, CPU, bf16".
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str

    def __init__(self) -> None:
        self._made_here = MadeHere(f"an engine ({type(self).__name__})")

    @abstractmethod
    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run the graph on contiguous arrays of the declared dtypes, [B, *shape]. Any thread may call it.

        Raises EngineError if the graph can't be run.
        """

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Check the inputs, run the graph, and return every output by name, [B, *shape].

        Raises EngineError if an input is missing or has another dtype or shape than the graph declares, if the engine
        can't run the graph, or if an output does not have one row per item: OpenVINO 2026.4 was seen to return
        [1, B, D] where the graph declares [B, D].
        """
        self._made_here.check(EngineError)
        feed = {spec.name: _fitting(spec, inputs) for spec in self.inputs}
        rows = len(next(iter(feed.values())))
        outputs = self.run(feed)
        for spec in self.outputs:
            found = outputs[spec.name].shape
            if len(found) != 1 + len(spec.shape) or found[0] != rows:
                raise EngineError(f"{self.device} answered {spec.name} of shape {list(found)} for a batch of {rows}")
        return outputs

    def warm_up(self, batch_size: int = 1) -> None:
        """Run once on zeros, so that the first real call does not pay for lazy initialisation."""
        self(sample(self.inputs, batch_size))


def sample(inputs: tuple[TensorSpec, ...], batch_size: int) -> dict[str, NDArray[Any]]:
    """Return zeros for every input, [batch_size, *shape]. Dynamic dimensions have size 16."""
    return {spec.name: np.zeros((batch_size, *spec.sized(_SAMPLED)), dtype=spec.dtype.value) for spec in inputs}


def tensor_spec(name: str, dtype: str, shape: tuple[int | str | None, ...]) -> TensorSpec:
    """Return the spec of an input or output whose first dimension is the batch.

    dtype: NumPy's name. Raises EngineError if a bundle's graph may not have inputs or outputs of this dtype.
    """
    if dtype not in set(DType):
        raise EngineError(f"tensor {name} is {dtype}; a bundle's graphs take and give {' and '.join(DType)}")
    return TensorSpec(
        name=name,
        dtype=DType(dtype),
        shape=tuple(size if isinstance(size, int) and size >= 0 else DYNAMIC for size in shape[1:]),
    )


def _fitting(spec: TensorSpec, inputs: Arrays) -> NDArray[Any]:
    if spec.name not in inputs:
        raise EngineError(f"input {spec.name} is missing; given are {', '.join(inputs) or 'none'}")
    array = np.asarray(inputs[spec.name])
    fits = len(array.shape) == 1 + len(spec.shape) and all(
        wanted in (DYNAMIC, found) for wanted, found in zip(spec.shape, array.shape[1:], strict=True)
    )
    if array.dtype != spec.dtype.value or not fits:
        raise EngineError(
            f"input {spec.name} is {array.dtype} {list(array.shape)}; the graph takes {spec.dtype} "
            f"[B, {', '.join('?' if size == DYNAMIC else str(size) for size in spec.shape)}]"
        )
    return np.ascontiguousarray(array, dtype=spec.dtype.value)  # of C's two 64-bit integers OpenVINO takes one
