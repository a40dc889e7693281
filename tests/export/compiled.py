"""Let NVIDIA's compiler read and build a graph. TensorRT for RTX needs no GPU for it; its wheel is for Python 3.11."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from cirrus_client.bundle import Bundle, DType, GraphSpec, Precision
from cirrus_client.plans import BatchProfile, Fusion
from cirrus_export.compile.ahead_of_time import build_ahead
from cirrus_export.compile.engine_inspector import attention_in_plan, count_attentions
from cirrus_export.compile.precision import lower_precision

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed (pip install 'cirrus-cir[rtx]')",
)
PROFILES = (BatchProfile(smallest=1, tuned=8, largest=16),)
_UNREAD = "is unused or used only at compile-time, but is not being removed"
LOWER = (Precision.FP16, Precision.BF16, Precision.INT8, Precision.FP8)


def inputs_of(graph: GraphSpec, *, rows: int = 8) -> dict[str, np.ndarray]:
    """Return noise for images, and texts that end at different places."""
    generator = np.random.default_rng(0)

    def values(dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        if dtype is not DType.INT64:
            return generator.standard_normal((rows, *shape), dtype=np.float32)
        ids = generator.integers(1, 400, (rows, *shape))
        return np.where(np.arange(shape[-1]) < 4 + np.arange(rows)[:, None], ids, 0)

    longest = graph.input_shapes()[-1]
    return {spec.name: values(spec.dtype, longest[spec.name]) for spec in graph.inputs}


def lowered(path: Path, graph: GraphSpec, precision: Precision, folder: Path) -> Path:
    copy = folder / path.name
    shutil.copyfile(path, copy)
    lower_precision(copy, precision, inputs_of(graph))
    return copy


def inputs_of_shapes(path: Path) -> list[str]:
    """Return the inputs of a graph of which nothing but the shape is taken, in order."""
    graph = onnx.load(path, load_external_data=False).graph
    read = {name for node in graph.node if node.op_type != "Shape" for name in node.input}
    return [spec.name for spec in graph.input if spec.name not in read]


def check_all_compile(bundle: Bundle, precision: Precision, folder: Path) -> None:
    """See `check_compiles`, of every graph of a bundle."""
    for name, graph in bundle.spec.graphs.items():
        check_compiles(name, bundle.graph_file(name), graph, precision, folder)


def check_compiles(name: str, path: Path, graph: GraphSpec, precision: Precision, folder: Path) -> None:
    """A graph is built without a warning. In half precision, and if it is quantised, every attention is fused.

    An input of which a constant takes the number of items alone is the one thing that the compiler remarks on.
    """
    file = path if precision is Precision.FP32 else lowered(path, graph, precision, folder)
    plan, warnings = build_ahead(file, graph, PROFILES, ["8.9"])
    remarks = [f"Input Tensor {unread} {_UNREAD}" for unread in inputs_of_shapes(file)]
    assert len(warnings) == len(remarks), (name, warnings)
    assert all(remark in warning for remark, warning in zip(remarks, warnings, strict=True)), (name, warnings)
    quantised = any(node.op_type == "QuantizeLinear" for node in onnx.load(file, load_external_data=False).graph.node)
    if quantised or precision in (Precision.FP16, Precision.BF16):
        attention = attention_in_plan(plan, count_attentions(file), profiles=len(PROFILES))
        assert attention.fusion in (Fusion.FUSED, Fusion.NONE), name
