"""Floors: operations and bytes are counted as they can be worked out by hand, and no card is faster than its rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from cirrus_bench.card_rates import CARD_RATES, CardRates, rates_of
from cirrus_bench.errors import FloorError
from cirrus_bench.floor import GraphWork, graph_work
from cirrus_bench.floor_report import FloorReport, floors_of
from cirrus_bench.gpu_check import highest_images_per_s
from cirrus_client.bundle import Precision

BATCH = 4
SIDE = 32


def written(path: Path, text: str, **weights: np.ndarray) -> Path:
    """Write a graph in ONNX's text form, with weights."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def square(kind: type = np.float32) -> np.ndarray:
    return np.ones((SIDE, SIDE), dtype=kind)


@pytest.mark.parametrize(
    ("text", "weight", "operations"),
    [
        ("g (float[B, 32] x) => (float[B, 32] y) { y = MatMul(x, w) }", square(), 2 * BATCH * 32 * 32),
        ("g (float[B, 7, 32] x) => (float[B, 7, 32] y) { y = MatMul(x, w) }", square(), 2 * BATCH * 7 * 32 * 32),
        ("g (float[B, 32] x) => (float[B, 32] y) { y = Gemm <transB = 1> (x, w) }", square(), 2 * BATCH * 32 * 32),
        (
            "g (float[B, 3, 8, 8] x) => (float[B, 5, 4, 4] y) { y = Conv <strides = [2, 2]> (x, w) }",
            np.ones((5, 3, 2, 2), dtype=np.float32),
            2 * BATCH * 5 * 4 * 4 * 3 * 2 * 2,
        ),
        (
            "g (float[B, 6, 32] x) => (float[B, 6, 6] z) { t = Transpose <perm = [0, 2, 1]> (x) y = MatMul(x, w) "
            "z = MatMul(y, t) }",
            square(),
            2 * BATCH * 6 * 32 * 32 + 2 * BATCH * 6 * 6 * 32,
        ),
    ],
)
def test_operations_are_two_per_multiply_add(tmp_path, text, weight, operations) -> None:
    assert graph_work(written(tmp_path / "graph.onnx", text, w=weight), BATCH).operations == {
        Precision.FP32: operations
    }


def test_weights_inputs_and_outputs_are_moved_once(tmp_path) -> None:
    path = written(tmp_path / "g.onnx", "g (float[B, 32] x) => (float[B, 32] y) { y = MatMul(x, w) }", w=square())
    assert graph_work(path, BATCH).bytes == 4 * (32 * 32 + 2 * BATCH * 32)


def test_of_a_table_only_the_rows_that_are_read_count(tmp_path) -> None:
    text = "g (int64[B, 2] ids) => (float[B, 2, 8] y) { y = Gather(table, ids) }"
    path = written(tmp_path / "g.onnx", text, table=np.ones((1000, 8), dtype=np.float32))
    read, ids = BATCH * 2 * 8 * 4, BATCH * 2 * 8
    assert graph_work(path, BATCH).bytes == ids + 2 * read
    assert graph_work(path, 1000).bytes == 1000 * 2 * 8 + 1000 * 2 * 8 * 4 + 1000 * 8 * 4


@pytest.mark.parametrize(
    ("kind", "onnx_kind", "precision"),
    [(np.float16, 10, Precision.FP16), (None, 16, Precision.BF16)],
)
def test_half_precision_counts_as_such_with_weights_that_are_cast_when_they_are_built(
    tmp_path, kind, onnx_kind, precision
) -> None:
    text = (
        f"g (float[B, 32] x) => (float[B, 32] y) {{ h = Cast <to = {onnx_kind}> (x) v = Cast <to = {onnx_kind}> (w) "
        "p = MatMul(h, v) y = Cast <to = 1> (p) }"
    )
    work = graph_work(written(tmp_path / "g.onnx", text, w=square()), BATCH)
    assert set(work.operations) == {precision}
    assert work.bytes == 2 * SIDE * SIDE + 2 * 4 * BATCH * SIDE


@pytest.mark.parametrize(("kind", "precision"), [("int8", Precision.INT8), ("float8e4m3fn", Precision.FP8)])
def test_a_product_of_dequantised_values_counts_as_eight_bits(tmp_path, kind, precision) -> None:
    zero = {"int8": 3, "float8e4m3fn": 17}[kind]
    text = (
        f"g (float[B, 32] x) => (float[B, 32] y) {{ z = Cast <to = {zero}> (nought) q = QuantizeLinear(x, s, z) "
        "d = DequantizeLinear(q, s, z) r = QuantizeLinear(w, s, z) v = DequantizeLinear(r, s, z) "
        "t = Transpose <perm = [1, 0]> (v) y = MatMul(d, t) }"
    )
    scale, nought = np.float32(0.1), np.float32(0)
    path = written(tmp_path / "g.onnx", text, w=square(), s=np.asarray(scale), nought=np.asarray(nought))
    work = graph_work(path, BATCH)
    assert work.operations == {precision: 2 * BATCH * SIDE * SIDE}
    assert work.bytes == pytest.approx(SIDE * SIDE + 2 * 4 * BATCH * SIDE, abs=16)


def test_a_product_with_only_one_quantised_side_counts_as_float(tmp_path) -> None:
    text = (
        "g (float[B, 32] x) => (float[B, 32] y) { z = Cast <to = 3> (nought) q = QuantizeLinear(x, s, z) "
        "d = DequantizeLinear(q, s, z) y = MatMul(d, w) }"
    )
    path = written(
        tmp_path / "g.onnx", text, w=square(), s=np.asarray(np.float32(0.1)), nought=np.asarray(np.float32(0))
    )
    assert set(graph_work(path, BATCH).operations) == {Precision.FP32}


def test_a_graph_whose_sizes_are_hidden_is_refused_by_the_nodes_name(tmp_path) -> None:
    text = "g (float[B, 32] x, int64[2] shape) => (float[M, 32] y) { r = Reshape(x, shape) [hidden] y = MatMul(r, w) }"
    with pytest.raises(FloorError, match=r"g\.onnx: the sizes of MatMul hidden"):
        graph_work(written(tmp_path / "g.onnx", text, w=square()), BATCH)


def test_a_floor_is_the_longer_of_arithmetic_and_memory() -> None:
    card = CardRates({Precision.FP32: 100.0, Precision.FP16: 1000.0}, bytes=10.0)
    assert GraphWork({Precision.FP32: 200, Precision.FP16: 1000}, bytes=10).floor_s(card) == pytest.approx(3.0)
    assert GraphWork({Precision.FP16: 1000}, bytes=50).floor_s(card) == pytest.approx(5.0)
    assert GraphWork({Precision.FP8: 1}, bytes=50).floor_s(card) is None


def test_rates_are_found_by_cudas_name() -> None:
    assert rates_of("NVIDIA L4") is CARD_RATES["L4"]
    assert rates_of("NVIDIA RTX PRO 6000 Blackwell Server Edition") is CARD_RATES["RTX PRO 6000 Blackwell"]
    assert rates_of("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition") is None
    assert rates_of("NVIDIA A10G") is None


@pytest.mark.parametrize("name", CARD_RATES)
def test_no_precision_is_slower_than_a_wider_one(name) -> None:
    rates = CARD_RATES[name].operations
    assert rates[Precision.FP32] < rates[Precision.FP16] == rates[Precision.BF16]
    assert 1.9 < rates[Precision.INT8] / rates[Precision.FP16] < 2.1
    assert rates.get(Precision.FP8, rates[Precision.INT8]) == rates[Precision.INT8]


def test_every_graph_of_a_bundle_has_its_floors_and_they_bound_the_speed(tiny_bundle) -> None:
    report = floors_of([tiny_bundle], 64)
    assert [row.graph for row in report.rows] == list(tiny_bundle.spec.graphs)
    assert all(set(row.floors_ms) == set(CARD_RATES) for row in report.rows)
    assert FloorReport.model_validate_json(report.model_dump_json()) == report
    for row in report.rows:
        assert f"| {row.graph} | {row.precision} |" in report.markdown()
    gallery = next(row for row in report.rows if row.graph == "gallery")
    highest = highest_images_per_s(tiny_bundle, "NVIDIA L4")
    assert highest == pytest.approx(64_000 / gallery.floors_ms["L4"])
    assert highest_images_per_s(tiny_bundle, "NVIDIA L40S") > highest
    assert highest_images_per_s(tiny_bundle, "an unknown card") is None


def test_texts_of_any_length_are_counted_at_the_one_that_is_asked_for(bundle) -> None:
    spec = bundle.spec.graphs["query_head"]
    short, long = (graph_work(bundle.graph_file("query_head"), BATCH, text_length=n) for n in (16, 32))
    assert 1 < long.operations[Precision.FP32] / short.operations[Precision.FP32] < 2
    assert long.bytes - short.bytes == BATCH * 16 * (4 * bundle.spec.space.dim + 8)
    assert spec.text_lengths[0] == 16
