"""What eight bits would do to the tensors inside a graph, measured before any layer is quantised."""

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
    """A tensor of [..., D] under eight bits.

    rows: of D values each, that an item has: its tokens. error: |x - rounded| / |x| of a row, the mean over all rows.
    """

    rows: int
    error: float


def measure_rounding(
    path: Path, tensors: Sequence[str], precision: Precision, calibration: Arrays
) -> dict[str, Rounding]:
    """Return what eight bits do to tensors of a graph, by name.

    The scale is one for a tensor and takes its largest value to the format's largest, as the quantisers do. path: a
    float32 ONNX file. precision: INT8, or FP8 (e4m3). calibration: real inputs of the graph, [B, ...] each, of which
    the first 16 items are taken.
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
    """The graph with the tensors among its outputs."""
    model = onnx.load(path)
    known = {spec.name for spec in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in known)
    opened = scratch / "opened.onnx"
    onnx.save(model, opened, save_as_external_data=True, location="opened.onnx.data")
    return onnxruntime.InferenceSession(str(opened), providers=["CPUExecutionProvider"])


def _activations(
    session: onnxruntime.InferenceSession, tensors: Sequence[str], calibration: Arrays
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The tensors' values, an item at a time: those of a whole batch would fill the memory."""
    inputs = {spec.name for spec in session.get_inputs()}
    inner = [name for name in tensors if name not in inputs]
    for row in range(min(_ITEMS, len(next(iter(calibration.values()))))):
        item = {name: values[row : row + 1] for name, values in calibration.items()}
        outer = {name: item[name] for name in tensors if name in inputs}
        yield outer | dict(zip(inner, session.run(inner, item), strict=True)) if inner else outer
