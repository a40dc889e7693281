"""What an engine is: it loads one graph, and maps named arrays to named arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import DType, TensorSpec
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError
from cirrus_client.forks import MadeHere

DYNAMIC = -1
"""A dimension other than the batch that varies from call to call."""


class EngineName(StrEnum):
    """What can run a graph.

    ONNXRUNTIME_TENSORRT has TensorRT build engines as it loads; TENSORRT runs the plans that a bundle has already.
    """

    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_TENSORRT = "onnxruntime-tensorrt"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


class Engine(ABC):
    """A loaded graph.

    Threads may share an engine: each call returns its own answer. Whether calls run at the same time or take turns is
    the engine's own matter. A process that is forked after the graph was loaded gets an EngineError: use "spawn".

    inputs, outputs: as the loaded graph declares them. device: the engine, its version, and what it runs on, for
    reports: "OpenVINO 2026.4.1, CPU, bf16".
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str

    def __init__(self) -> None:
        self._made_here = MadeHere(f"an engine ({type(self).__name__})")

    @abstractmethod
    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run the graph on contiguous arrays of the declared dtypes, [B, *shape], from any thread.

        Raises EngineError.
        """

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Return every output by name, [B, *shape].

        Raises EngineError, naming the tensor, if an input is missing, or has another dtype or shape than the graph
        declares; with the engine's own reason if it can't run the graph; and if an output does not have one row per
        item: OpenVINO 2026.4 was seen to answer [1, B, D] where the graph says [B, D].
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
        """Run once on zeros, so that the first real call does not pay for what engines do lazily."""
        self(sample(self.inputs, batch_size))


def sample(inputs: tuple[TensorSpec, ...], batch_size: int) -> dict[str, NDArray[Any]]:
    """Return zeros for every input, [batch_size, *shape]; dimensions that vary are one."""
    return {
        spec.name: np.zeros((batch_size, *(max(size, 1) for size in spec.shape)), dtype=spec.dtype.value)
        for spec in inputs
    }


def tensor_spec(name: str, dtype: str, shape: tuple[int | str | None, ...]) -> TensorSpec:
    """Return the description of a tensor whose first dimension is the batch.

    dtype: numpy's name. Raises EngineError if it is none that a graph of a bundle may have at its ends.
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
    array = np.ascontiguousarray(inputs[spec.name])
    fits = len(array.shape) == 1 + len(spec.shape) and all(
        wanted in (DYNAMIC, found) for wanted, found in zip(spec.shape, array.shape[1:], strict=True)
    )
    if array.dtype != spec.dtype.value or not fits:
        raise EngineError(
            f"input {spec.name} is {array.dtype} {list(array.shape)}; the graph takes {spec.dtype} "
            f"[B, {', '.join('?' if size == DYNAMIC else str(size) for size in spec.shape)}]"
        )
    return array
