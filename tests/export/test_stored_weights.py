"""Weights that 16 bits hold are stored in them, and every engine computes the same bits as before."""

from __future__ import annotations

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cirrus_client.bundle import Precision
from cirrus_client.engines import candidates, open_engine
from cirrus_export.compile.stored_weights import store_in_16_bits

SIDE = 48
RANDOM = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
SCALES = np.logspace(-30, 12, SIDE, dtype=np.float32)
"""float16 holds neither end of these, bfloat16 both."""
WEIGHTS = {
    "bfloat16": (RANDOM * SCALES).astype(ml_dtypes.bfloat16).astype(np.float32),
    "float16": RANDOM.astype(np.float16).astype(np.float32),
    "float32": RANDOM * np.float32(1.1),
    "one_value_more": np.where(np.arange(SIDE * SIDE).reshape(SIDE, SIDE) == 7, np.float32(0.1), np.float32(-0.0)),
    "small": np.ones(SIDE, np.float32),
}
STORED = {
    "bfloat16.stored": TensorProto.BFLOAT16,
    "float16.stored": TensorProto.FLOAT16,
    **dict.fromkeys(("float32", "one_value_more", "small"), TensorProto.FLOAT),
}


def write_graph(path: Path, *, beside: bool) -> None:
    """Write a graph that looks weights up, multiplies by them and adds them."""
    names = list(WEIGHTS)
    nodes = [
        helper.make_node("Gather", ["bfloat16", "ids"], ["looked_up"]),
        *(
            helper.make_node("MatMul", [before, name], [f"by_{name}"])
            for before, name in zip(["looked_up", "by_float16", "by_float32"], names[1:4], strict=True)
        ),
        helper.make_node("Add", ["by_one_value_more", "small"], ["sum"]),
        helper.make_node("MatMul", ["sum", "bfloat16"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", SIDE])],
        [numpy_helper.from_array(values, name) for name, values in WEIGHTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=beside, location=f"{path.name}.data", size_threshold=0)


@pytest.mark.parametrize("engine", candidates(Precision.FP32))
def test_every_engine_computes_the_same_bits(tmp_path, engine) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after"
    write_graph(before, beside=True)
    after.mkdir()
    for file in (before, Path(f"{before}.data")):
        shutil.copyfile(file, after / file.name)
    store_in_16_bits(after / before.name)
    model = onnx.load(after / before.name)
    onnx.checker.check_model(str(after / before.name), full_check=True)
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer} == STORED
    assert sorted(path.name for path in after.iterdir()) == ["before.onnx", "before.onnx.data"]
    assert str(after) not in Path("/proc/self/maps").read_text()
    ids = {"ids": np.arange(SIDE)}
    answers = [open_engine(path, Precision.FP32, engine=engine)(ids)["out"] for path in (before, after / before.name)]
    assert np.isfinite(answers[0]).all()
    assert answers[0].tobytes() == answers[1].tobytes()


def test_weights_in_the_graphs_own_file_stay(tmp_path) -> None:
    write_graph(tmp_path / "graph.onnx", beside=False)
    written = (tmp_path / "graph.onnx").read_bytes()
    store_in_16_bits(tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx").read_bytes() == written
