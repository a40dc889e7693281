"""Measure how much int8 or fp8 would change the tensors inside a graph, before any layer is quantised."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from ml_dtypes import float8_e4m3fn
from numpy.typing import NDArray

from cirrus_client.bundle import Precision
from cirrus_client.ensemble import Arrays

_ITEMS = 16
_LARGEST = {Precision.INT8: 127.0, Precision.FP8: 448.0}


@dataclass(frozen=True)
class Rounding:
    """How eight bits change a tensor of shape [..., D].

    rows: number of D-wide vectors per item (its tokens). error: mean of |x - rounded(x)| / |x| over all rows.
    """

    rows: int
    error: float


def measure_rounding(
    path: Path, tensors: Sequence[str], precision: Precision, calibration: Arrays
) -> dict[str, Rounding]:
    """Return how eight bits change tensors of a graph, by the tensor's name.

    A tensor has one scale, which takes its largest value to the format's largest, as in the quantisers. path: a float32
    ONNX file. precision: INT8, or FP8 (e4m3). calibration: real inputs of the graph, [B, ...] each; the first 16 items
    are used.
    """
    largest = dict.fromkeys(tensors, 0.0)
    errors: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tensors}
    with tempfile.TemporaryDirectory() as scratch:
        session = _opened(path, tensors, Path(scratch))
        for values in _activations(session, tensors, calibration):
            for name, value in values.items():
                largest[name] = max(largest[name], float(np.abs(value).max()))
        for values in _activations(session, tensors, calibration):
            for name, value in values.items():
                rows = value.reshape(-1, value.shape[-1])
                lost = rows - _rounded(rows, largest[name] / _LARGEST[precision], precision)
                errors[name].append(np.linalg.norm(lost, axis=1) / np.maximum(np.linalg.norm(rows, axis=1), 1e-12))
    return {name: Rounding(len(items[0]), float(np.mean(items))) for name, items in errors.items()}


def _rounded(values: NDArray[np.float32], scale: float, precision: Precision) -> NDArray[np.float32]:
    if scale == 0:
        return values
    steps = values / np.float32(scale)
    rounded = np.round(steps) if precision is Precision.INT8 else steps.astype(float8_e4m3fn).astype(np.float32)
    return rounded * np.float32(scale)


def _opened(path: Path, tensors: Sequence[str], scratch: Path) -> onnxruntime.InferenceSession:
    """Open the graph with the tensors as additional outputs."""
    model = onnx.load(path)
    known = {spec.name for spec in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in known)
    opened = scratch / "opened.onnx"
    onnx.save(model, opened, save_as_external_data=True, location="opened.onnx.data")
    return onnxruntime.InferenceSession(str(opened), providers=["CPUExecutionProvider"])


def _activations(
    session: onnxruntime.InferenceSession, tensors: Sequence[str], calibration: Arrays
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the tensors' values, one item at a time: a whole batch would fill the memory."""
    inputs = {spec.name for spec in session.get_inputs()}
    inner = [name for name in tensors if name not in inputs]
    for row in range(min(_ITEMS, len(next(iter(calibration.values()))))):
        item = {name: values[row : row + 1] for name, values in calibration.items()}
        outer = {name: item[name] for name in tensors if name in inputs}
        yield outer | dict(zip(inner, session.run(inner, item), strict=True)) if inner else outer
