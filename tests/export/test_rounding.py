"""Which layers eight bits keep well is measured on real inputs, before any is quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from cirrus_client.bundle import Precision
from cirrus_export.compile.precision import quantised_layers
from cirrus_export.compile.rounding import measure_rounding

RNG = np.random.default_rng(0)
WIDTH = 32


@pytest.fixture
def graph(tmp_path) -> Path:
    """tokens -> first -> Relu -> second -> last, the graph's output."""
    names = ("tokens", "first", "active", "second", "out")
    weights = [RNG.standard_normal((WIDTH, WIDTH), dtype=np.float32) for _ in range(3)]
    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["tokens", "w0"], ["first"], name="first_layer"),
            helper.make_node("Relu", ["first"], ["active"]),
            helper.make_node("MatMul", ["active", "w1"], ["second"], name="second_layer"),
            helper.make_node("MatMul", ["second", "w2"], ["out"], name="last_layer"),
        ],
        "layers",
        [helper.make_tensor_value_info(names[0], onnx.TensorProto.FLOAT, ["batch", "rows", WIDTH])],
        [helper.make_tensor_value_info(names[-1], onnx.TensorProto.FLOAT, ["batch", "rows", WIDTH])],
        [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def tokens(*, rows: int = 12, outlier: float = 0.0) -> dict[str, np.ndarray]:
    values = RNG.standard_normal((4, rows, WIDTH), dtype=np.float32)
    values[0, 0, 0] += outlier
    return {"tokens": values}


def test_layers_are_taken_but_for_the_one_that_makes_the_output(graph) -> None:
    assert quantised_layers(graph, Precision.INT8, tokens()) == ["first_layer", "second_layer"]


def test_an_outlier_keeps_a_layer_out_of_int8_but_not_of_fp8(graph) -> None:
    calibration = tokens(outlier=200.0)
    assert quantised_layers(graph, Precision.INT8, calibration) == []
    assert quantised_layers(graph, Precision.FP8, calibration) == ["first_layer", "second_layer"]


def test_a_head_over_a_few_vectors_stays_out(graph) -> None:
    assert quantised_layers(graph, Precision.INT8, tokens(rows=2)) == []


def test_rounding_is_that_of_the_format(graph) -> None:
    calibration = tokens()
    int8 = measure_rounding(graph, ["tokens"], Precision.INT8, calibration)["tokens"]
    fp8 = measure_rounding(graph, ["tokens"], Precision.FP8, calibration)["tokens"]
    values = calibration["tokens"]
    step = np.abs(values).max() / 127
    uniform = step / np.sqrt(12) / np.sqrt((values**2).mean())
    assert int8.rows == fp8.rows == 12
    assert int8.error == pytest.approx(uniform, rel=0.1)
    # three bits behind the point: a sixteenth at most, 2.6% on average
    assert 0.02 < fp8.error < 0.0625


def test_zeros_have_no_error(graph) -> None:
    nothing = {"tokens": np.zeros((2, 12, WIDTH), dtype=np.float32)}
    assert measure_rounding(graph, ["tokens", "active"], Precision.INT8, nothing)["active"].error == 0.0
