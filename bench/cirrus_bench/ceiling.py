"""The machine's ceiling: its peak rate of matrix multiplication, and the operations that one image needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from cirrus_bench.gallery.report import PeakRate
from cirrus_bench.measure import Timing, Work
from cirrus_client.bundle import Precision
from cirrus_client.engines import Engine, candidates, open_engine
from cirrus_export.compile.precision import lower_precision
from cirrus_export.graph import Graph

_SIDE = 2048
_ROWS = 32
_PRODUCTS = 6
Product = tuple[Precision, str]
"""A precision, and the `Engine.device` that multiplies in it."""


def operations_per_image(graph: Graph) -> int:
    """Count the floating-point operations of one image in a graph of pixels; a multiply-add is two.

    torch can't count its fused attention, which is therefore switched off while counting.
    """
    pixels = torch.zeros(1, *graph.inputs[0].shape)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            graph.module(pixels)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def products(precisions: Sequence[Precision]) -> dict[Product, Work]:
    """Return functions to time that multiply 2,048 x 2,048 matrices, for each precision and engine that runs it."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((_SIDE // _ROWS, _ROWS, _SIDE), dtype=np.float32)
    return {
        (precision, engine.device): partial(engine, {"rows": rows})
        for precision in precisions
        for engine in _engines(precision, rows)
    }


def peak_rates(timings: Mapping[Product, Timing]) -> list[PeakRate]:
    """Return the rate of the fastest engine at each precision, from the times of `products`."""
    fastest: dict[Precision, PeakRate] = {}
    for (precision, device), timing in timings.items():
        rate = 2 * _SIDE**3 * _PRODUCTS / timing.median
        if precision not in fastest or rate > fastest[precision].operations_per_s:
            fastest[precision] = PeakRate(precision=precision, device=device, operations_per_s=rate)
    return list(fastest.values())


def _engines(precision: Precision, rows: NDArray[np.float32]) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "gemm.onnx"
        onnx.save(product_chain(np.random.default_rng(0)), path)
        if precision is not Precision.FP32:
            lower_precision(path, precision, {"rows": rows[:16]})
        for name in candidates(precision):
            yield open_engine(path, precision, engine=name, bulk=True)


def product_chain(generator: np.random.Generator) -> onnx.ModelProto:
    """Return a chain of matrix products that int8 quantisation accepts.

    Each item has 32 rows, since layers of fewer than 8 are not quantised. A final narrow product stays in fp32,
    because it makes the output.
    """
    widths = [_SIDE] * (_PRODUCTS + 1) + [8]
    weights = [
        numpy_helper.from_array(
            generator.standard_normal((left, right), dtype=np.float32) / np.float32(np.sqrt(left)), f"weight_{layer}"
        )
        for layer, (left, right) in enumerate(pairwise(widths))
    ]
    names = ["rows", *(f"product_{layer}" for layer in range(len(weights)))]
    nodes = [
        helper.make_node("MatMul", [names[layer], f"weight_{layer}"], [names[layer + 1]], name=f"matmul_{layer}")
        for layer in range(len(weights))
    ]
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", _ROWS, _SIDE])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["batch", _ROWS, 8])],
        initializer=weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
