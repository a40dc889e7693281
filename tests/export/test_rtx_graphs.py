"""Every kind of graph at every precision, read and built by NVIDIA's compiler: TensorRT for RTX needs no GPU for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle, GraphSpec, Precision
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine
from cirrus_client.files import sha256_of_file
from cirrus_client.plans import Library
from cirrus_export.compile.ahead_of_time import build_ahead
from cirrus_export.compile.attention_guard import remove_attention_guards
from cirrus_export.compile.engine_inspector import attention_in_plan, count_attentions
from cirrus_export.compile.half_attention import model_to_compile
from cirrus_export.compile.plan_builder import batch_profiles
from cirrus_export.compile.precision import quantised_layers
from tests.export.compiled import LOWER, PROFILES, check_compiles, inputs_of, lowered, needs_rtx

pytestmark = pytest.mark.export
RECIPES = ("transagg-union", "sprc", "hint", "searle")
IN_FLOAT32_ALONE = (
    *("hint ", "clip ", "searle vision_encoder", "searle target_head", "searle gallery"),
    *("searle text_query_encoder", "transagg-union gallery", "sprc gallery", "demo target_head", "demo gallery"),
    "reranker query_head",
)
"""Graphs with the operators of others.

hint's are sprc's, clip's and searle's the demo's, a gallery's those of its encoder and head.
"""
Graphs = dict[str, tuple[Path, GraphSpec]]


@pytest.fixture(scope="module")
def graphs(
    author_bundle: Callable[[str], Bundle], reranking_bundle: Bundle, bundle: Bundle, clip_bundle: Bundle
) -> Graphs:
    """Graphs of small checkpoints whose weights and biases are not zero: BLIP, BLIP-2, CLIP, and every head on them.

    A file that two bundles share is there once. The demo's TransAgg is left out: its attention has 8 features a head,
    which no fused kernel takes.
    """
    bundles = {recipe: author_bundle(recipe) for recipe in RECIPES} | {"clip": clip_bundle, "demo": bundle}
    found = {
        f"{recipe} {name}": (made.graph_file(name), graph)
        for recipe, made in bundles.items()
        for name, graph in made.spec.graphs.items()
        if (recipe, name) != ("demo", "query_head")
    }
    own = ("query_head", "matching_head")
    found |= {
        f"reranker {name}": (reranking_bundle.graph_file(name), reranking_bundle.spec.graphs[name]) for name in own
    }
    return dict({sha256_of_file(path): (name, (path, graph)) for name, (path, graph) in found.items()}.values())


def test_biases_are_there_to_be_quantised(graphs: Graphs) -> None:
    """The exporter drops zero biases, and with them whatever the compiler would say of them."""
    for name, (path, _) in graphs.items():
        model = onnx.load(path)
        if any(node.op_type in ("MatMul", "Gemm") for node in model.graph.node):
            vectors = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if len(tensor.dims) == 1]
            assert any(np.any(vector) for vector in vectors), name


@needs_rtx
@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_every_graph_compiles_in_float32(graphs: Graphs, capability: str, tmp_path: Path) -> None:
    for name, (path, graph) in graphs.items():
        if capability == "8.9" or name.endswith("query_head"):
            check_compiles(name, path, graph, Precision.FP32, tmp_path, capability=capability)


@needs_rtx
@pytest.mark.parametrize("precision", LOWER)
def test_every_graph_compiles_in_a_lower_precision(graphs: Graphs, precision: Precision, tmp_path: Path) -> None:
    for name, (path, graph) in graphs.items():
        if not name.startswith(IN_FLOAT32_ALONE):
            check_compiles(name, path, graph, precision, tmp_path)


@needs_rtx
def test_fusion_is_told_alike_for_one_card_and_three_with_one_profile_and_two(bundle: Bundle, tmp_path: Path) -> None:
    graph = bundle.spec.graphs["vision_encoder"]
    file = lowered(bundle.graph_file("vision_encoder"), graph, Precision.FP16, tmp_path)
    for profiles in (PROFILES, batch_profiles(Library.RTX, 8)):
        for capabilities in (["8.9"], ["8.6", "8.9", "12.0"]):
            plan, _ = build_ahead(file, graph, profiles, capabilities)
            assert attention_in_plan(plan, 4, profiles=len(profiles)).fused_layers == 4


def test_int8_leaves_biases_and_sums_alone(bundle: Bundle, tmp_path: Path) -> None:
    graph = bundle.spec.graphs["vision_encoder"]
    model = onnx.load(lowered(bundle.graph_file("vision_encoder"), graph, Precision.INT8, tmp_path))
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantised = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantised
    assert not [name for name in quantised if makers.get(name) in ("MatMul", "Gemm")]
    dequantised = [types.get(node.input[0]) for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert dequantised
    assert onnx.TensorProto.INT32 not in dequantised


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_eight_bits_quantise_the_chosen_layers_and_no_others(
    graphs: Graphs, precision: Precision, tmp_path: Path
) -> None:
    """Of a graph with names that begin with others: node_linear_1, node_linear_10."""
    path, graph = graphs["transagg-union query_head"]
    chosen = quantised_layers(path, precision, inputs_of(graph))
    model = onnx.load(lowered(path, graph, precision, tmp_path))
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    found = [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and makers.get(node.input[0]) == "DequantizeLinear"
    ]
    assert chosen
    assert sorted(found) == sorted(chosen)


def test_no_graph_keeps_the_guard_of_its_attention(graphs: Graphs) -> None:
    for name, (path, _) in graphs.items():
        assert not any(node.op_type == "IsNaN" for node in onnx.load(path).graph.node), name


def test_a_guard_is_removed_and_what_only_looks_like_one_stays() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 20]>
        guarded (float[N, 4] x) => (float[N, 4] y, float[N, 4] kept) <float zero = {0}, float one = {1}> {
            p = Softmax(x)
            bad = IsNaN(p)
            safe = Where(bad, zero, p)
            y = Neg(safe)
            q = Softmax(x)
            odd = IsNaN(q)
            kept = Where(odd, one, q)
            half = Constant<value_float = 0.5>()
        }
        """
    )
    assert remove_attention_guards(model) == 1
    assert [node.op_type for node in model.graph.node] == ["Softmax", "Neg", "Softmax", "IsNaN", "Where", "Constant"]
    assert model.graph.node[1].input[0] == "p"
    onnx.checker.check_model(model, full_check=True)


def test_products_of_activations_alone_are_compiled_in_half_precision(bundle: Bundle, tmp_path: Path) -> None:
    file = bundle.graph_file("vision_encoder")
    assert model_to_compile(file) == onnx.load(file), "a graph that is not quantised is compiled as it is"
    graph = bundle.spec.graphs["vision_encoder"]
    quantised = lowered(file, graph, Precision.INT8, tmp_path)
    model = model_to_compile(quantised)
    onnx.checker.check_model(model, full_check=True)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    half = [node for node in products if node.output[0].endswith("_half")]
    assert len(half) == 2 * count_attentions(quantised)
    assert len(products) == sum(node.op_type == "MatMul" for node in onnx.load(quantised).graph.node)
    onnx.save(model, tmp_path / "compiled.onnx")
    found, expected = (
        OnnxRuntimeEngine(path, Precision.INT8)(inputs_of(graph)) for path in (tmp_path / "compiled.onnx", quantised)
    )
    for name, values in expected.items():
        assert cosine_min(values.reshape(8, -1), found[name].reshape(8, -1)) > 0.999
