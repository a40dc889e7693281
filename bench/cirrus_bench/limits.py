"""What the machine could do at most: its rate of multiplications, and what an image costs of them."""

from __future__ import annotations

import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from cirrus_bench.measure import time_interleaved
from cirrus_client.bundle import Contract, Precision
from cirrus_client.engines import candidates, open_engine
from cirrus_export.backbones.backbone import ImageTextBackbone
from cirrus_export.precision import lower_precision

_SIDE = 2048
_ROWS = 32
_PRODUCTS = 6
_ROUNDS = 5


class GemmRate(Contract):
    """Operations a second in products of square matrices, on the fastest engine for a precision."""

    precision: Precision
    engine: str
    operations_per_s: float


def gemm_rates(precisions: list[Precision]) -> list[GemmRate]:
    """Measure this machine on a chain of products of 2,048 x 2,048 matrices, for each precision that runs here."""
    return [_gemm_rate(precision) for precision in precisions if candidates(precision)]


def operations_per_image(backbone: ImageTextBackbone) -> int:
    """Return the floating-point operations of one image through the encoder, two for each multiply-add.

    torch's fused attention is not counted, so it is left aside for the count.
    """
    pixels = torch.zeros(1, 3, backbone.image_size_px, backbone.image_size_px)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            backbone.encode_image(pixels)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def _gemm_rate(precision: Precision) -> GemmRate:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((_SIDE // _ROWS, _ROWS, _SIDE), dtype=np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "gemm.onnx"
        onnx.save(product_chain(generator), path)
        if precision is not Precision.FP32:
            lower_precision(path, precision, {"rows": rows[:16]})
        engines = [open_engine(path, precision, engine=name, bulk=True) for name in candidates(precision)]
    timings = time_interleaved({engine.device: partial(engine, {"rows": rows}) for engine in engines}, _ROUNDS)
    fastest = min(timings, key=lambda device: timings[device].median)
    operations = 2 * _SIDE**3 * _PRODUCTS
    return GemmRate(precision=precision, engine=fastest, operations_per_s=operations / timings[fastest].median)


def product_chain(generator: np.random.Generator) -> onnx.ModelProto:
    """Products such as eight bits are for: an item has several rows, and a narrow last one makes the output."""
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
