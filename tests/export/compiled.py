"""Let NVIDIA's compiler read and build a graph. TensorRT for RTX needs no GPU for it; its wheel is for Python 3.11.

A graph that passed is not compiled again by a later run, as long as nothing that determines it has changed.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

import cirrus_client
import cirrus_export
from cirrus_client.bundle import Bundle, DType, GraphSpec, Precision
from cirrus_client.external_data import external_files
from cirrus_client.files import sha256_of_file
from cirrus_client.plans import BatchProfile, Fusion
from cirrus_export.compile.ahead_of_time import build_ahead
from cirrus_export.compile.engine_inspector import attention_in_plan, count_attentions
from cirrus_export.compile.precision import lower_precision
from tests.conversions import code_hash

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed (pip install 'cirrus-cir[rtx]')",
)
PROFILES = (BatchProfile(smallest=1, tuned=8, largest=16),)
_UNREAD = "is unused or used only at compile-time, but is not being removed"
LOWER = (Precision.FP16, Precision.BF16, Precision.INT8, Precision.FP8)
_TOOLS = ("tensorrt-rtx-cu12-bindings", "nvidia-modelopt", "onnxruntime", "onnx", "onnxscript", "onnx-ir", "numpy")
passed: Path | None = None
"""Where is kept what passed; the fixture `conversions` sets it."""


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


def check_compiles(
    name: str, path: Path, graph: GraphSpec, precision: Precision, folder: Path, *, capability: str = "8.9"
) -> None:
    """A graph is built without a warning. In half precision, and if it is quantised, every attention is fused.

    An input of which a constant takes the number of items alone is the one thing that the compiler remarks on.
    """
    verdict = None if passed is None else passed / f"compiles-{_identity(path, graph, precision, capability)}"
    if verdict is None or not verdict.exists():
        _check_compiles(name, path, graph, precision, folder, capability)
    if verdict is not None:
        verdict.touch()


def _identity(path: Path, graph: GraphSpec, precision: Precision, capability: str) -> str:
    """Return a hash of a graph, of what is asked, and of all code that lowers and compiles it."""
    digest = hashlib.sha256(f"{_code()} {graph.model_dump_json()} {precision} {capability}".encode())
    for file in (path, *(path.parent / name for name in sorted(external_files(path)))):
        digest.update(sha256_of_file(file).encode())
    return digest.hexdigest()[:24]


@cache
def _code() -> str:
    return sha256_of_file(Path(__file__)) + code_hash(_TOOLS, cirrus_client, cirrus_export)


def _check_compiles(
    name: str, path: Path, graph: GraphSpec, precision: Precision, folder: Path, capability: str
) -> None:
    file = path if precision is Precision.FP32 else lowered(path, graph, precision, folder)
    plan, warnings = build_ahead(file, graph, PROFILES, [capability])
    remarks = [f"Input Tensor {unread} {_UNREAD}" for unread in inputs_of_shapes(file)]
    assert len(warnings) == len(remarks), (name, warnings)
    assert all(remark in warning for remark, warning in zip(remarks, warnings, strict=True)), (name, warnings)
    quantised = any(node.op_type == "QuantizeLinear" for node in onnx.load(file, load_external_data=False).graph.node)
    if quantised or precision in (Precision.FP16, Precision.BF16):
        attention = attention_in_plan(plan, count_attentions(file), profiles=len(PROFILES))
        assert attention.fusion in (Fusion.FUSED, Fusion.NONE), name
