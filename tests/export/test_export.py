"""The exported bundle: gate passed, null text folded in, three repositories' worth of configuration."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from onnx import numpy_helper
from tritonclient.grpc import model_config_pb2

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.canary import read_canary
from cirrus_client.encoders import LocalEncoder
from cirrus_client.engines import candidates
from cirrus_client.errors import BundleError, EngineError, ExportError, FidelityError, InvalidInput, OutputError
from cirrus_client.image.preprocess import preprocess
from cirrus_client.replay import LocalRunner, replay
from cirrus_export import pipeline
from cirrus_export.backbones.open_clip import OpenClipBackbone, open_clip
from cirrus_export.compile.precision import quantised_layers
from cirrus_export.draft import ContractDraft, recorded_versions
from cirrus_export.gate.thresholds import THRESHOLDS
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.repository import Flavour, write_repository


def demo_request(weights, out, **changes) -> ExportRequest:
    values = {
        "recipe": "transagg-union",
        "backbone": "cirrus-demo",
        "pretrained": str(weights.clip),
        "head": str(weights.head),
        "out": out,
    }
    return ExportRequest(**(values | changes))


def test_the_gate_was_passed_and_its_report_is_readable(bundle) -> None:
    report = json.loads((bundle.root / "report.json").read_text())
    assert report["failures"] == []
    assert report["thresholds"] == THRESHOLDS[bundle.spec.precision].model_dump()
    assert {stage["graph"] for stage in report["stages"]} == set(bundle.spec.graphs)
    assert min(stage["cosine_min"] for stage in report["stages"]) > 0.99999
    assert min(stage["batch_cosine_min"] for stage in report["stages"]) > 0.99999
    assert report["retrieval"][0]["top10_agreement"] == 1.0
    assert "**passed**" in (bundle.root / "report.md").read_text()


def test_the_demos_space_is_the_one_of_earlier_releases(bundle, clip_bundle) -> None:
    """Galleries that were embedded before, or on a machine with another CPU, need not be embedded again."""
    assert bundle.spec.space.fingerprint == "6cf7aa10d83f77016661ced185b9cdc76d730a4193558160cd43eb9d474b3273"
    assert clip_bundle.spec.space.fingerprint == "f7c0f7e4defb7c3c9fdd2b92d1790a8353831e37de0e3abd650a06338b95fe9a"


def test_the_arithmetic_of_a_cpu_is_no_part_of_the_space_and_every_weight_is(weights, tmp_path) -> None:
    request = demo_request(weights, tmp_path / "unused")
    recipe = build_recipe(request)

    def fingerprint() -> str:
        return ContractDraft(request, recipe, tmp_path).space.fingerprint

    first = fingerprint()
    recipe.target_head.null_text.mul_(1 + 1e-6)
    assert fingerprint() == first
    with torch.no_grad():
        next(recipe.backbone.text.parameters()).mul_(1 + 1e-6)
    assert fingerprint() != first


def test_a_bundle_is_made_with_either_package_of_onnx_runtime(monkeypatch) -> None:
    """The extra `gpu` brings onnxruntime-gpu alone."""

    def version_there(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return version_here("onnxruntime" if name == "onnxruntime-gpu" else name)

    version_here = metadata.version
    monkeypatch.setattr(metadata, "version", version_there)
    assert recorded_versions()["onnxruntime-gpu"] == version_here("onnxruntime")
    assert "onnxruntime" not in recorded_versions()


@pytest.mark.parametrize("graph", ["gallery", "target_head"])
def test_no_text_encoder_is_in_a_target_graph(bundle, graph) -> None:
    model = onnx.load(bundle.graph_file(graph))
    assert [node.name for node in model.graph.input] in (["pixels"], ["image_embedding"])
    vocabulary = 49408
    assert all(vocabulary not in tensor.dims for tensor in model.graph.initializer)
    text = onnx.load(bundle.graph_file("text_encoder"))
    assert any(vocabulary in tensor.dims for tensor in text.graph.initializer)


def test_the_null_text_is_a_constant_of_the_gallery_graph(bundle, weights, tmp_path) -> None:
    recipe = build_recipe(demo_request(weights, tmp_path / "unused"))
    with torch.no_grad():
        null_text = recipe.backbone.encode_text(recipe.backbone.null_token_ids)[0].numpy()
    constants = [numpy_helper.to_array(tensor) for tensor in onnx.load(bundle.graph_file("gallery")).graph.initializer]
    assert any(value.size == null_text.size and np.allclose(value.ravel(), null_text.ravel()) for value in constants)


def test_local_targets_are_the_originals(bundle, encoder, weights, photos, tmp_path) -> None:
    recipe = build_recipe(demo_request(weights, tmp_path / "unused"))
    images = sorted(photos.iterdir())[:5]
    pixels = torch.from_numpy(np.stack([encoder.prepare(path.read_bytes()) for path in images]))
    with torch.no_grad():
        original = recipe.target(pixels).numpy()
    np.testing.assert_allclose(encoder.encode_targets(images), original, atol=5e-6)


@pytest.mark.parametrize("plain_blocks", [True, False])
def test_the_embedding_alone_is_the_one_that_comes_with_the_tokens(weights, tmp_path, plain_blocks) -> None:
    backbone = build_recipe(demo_request(weights, tmp_path / "unused")).backbone
    if not plain_blocks:
        vision = open_clip.CLIPVisionCfg(
            layers=2, width=64, head_width=32, image_size=96, patch_size=32, scale_attn=True
        )
        backbone = OpenClipBackbone(open_clip.CLIP(64, vision, open_clip.CLIPTextCfg(width=64, heads=2, layers=1)))
    pixels = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.embed_gallery_image(pixels), backbone.encode_image(pixels)[0], atol=2e-6, rtol=1e-5
        )


def test_a_graph_broken_on_purpose_is_caught_named_and_not_served(weights, probe, tmp_path, monkeypatch) -> None:
    def write_then_break(graph, path):
        spec = pipeline_write_onnx(graph, path)
        if graph.name == "query_head":
            model = onnx.load(path)
            weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            damaged = numpy_helper.to_array(weight).copy()
            damaged[0] = -damaged[0] * 40
            weight.CopyFrom(numpy_helper.from_array(damaged, weight.name))
            onnx.save(model, path)
        return spec

    pipeline_write_onnx = pipeline.write_onnx
    monkeypatch.setattr(pipeline, "write_onnx", write_then_break)
    out = tmp_path / "bundle"
    with pytest.raises(FidelityError, match="graph query_head, output query_embedding: cosine to the original"):
        export(demo_request(weights, out), probe)
    assert "**FAILED**" in (out / "report.md").read_text()
    assert not (out / "triton").exists()
    with pytest.raises(BundleError, match="failed its fidelity gate"):
        Bundle.open(out)


def test_half_precision_passes_its_own_gate_and_keeps_the_space(bundle, demo_bundle_in) -> None:
    half = demo_bundle_in(Precision.FP16)
    assert half.spec.space.fingerprint == bundle.spec.space.fingerprint
    elements = {tensor.data_type for tensor in onnx.load(half.graph_file("gallery")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in elements
    weight_bytes = [b.graph_file("vision_encoder").stat().st_size for b in (half, bundle)]
    assert weight_bytes[0] < 0.7 * weight_bytes[1]


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_a_precision_that_no_engine_could_verify_is_refused(weights, probe, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cirrus_client.engines.onnx_runtime.available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("cirrus_client.engines.openvino.capabilities", lambda: ["FP32"])
    with pytest.raises(EngineError, match="--precision bf16: no engine here runs it"):
        export(demo_request(weights, tmp_path / "b", precision=Precision.BF16), probe)
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(not candidates(Precision.BF16), reason="no engine on this machine has bfloat16")
def test_bfloat16_passes_its_own_gate(demo_bundle_in) -> None:
    half = demo_bundle_in(Precision.BF16)
    graph = onnx.load(half.graph_file("gallery")).graph
    elements = {tensor.name: tensor.data_type for tensor in graph.initializer}
    read = {kind: {elements.get(name) for node in graph.node if node.op_type in kinds for name in node.input}
            for kind, kinds in {"products": ("MatMul", "Gemm", "Conv"), "sums": ("Add",)}.items()}  # fmt: skip
    assert onnx.TensorProto.BFLOAT16 in read["products"]
    assert read["sums"] == {None, onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("precision", "element"),
    [(Precision.INT8, onnx.TensorProto.INT8), (Precision.FP8, onnx.TensorProto.FLOAT8E4M3FN)],
)
def test_eight_bits_keep_their_layers_and_pass_their_own_gate(
    bundle, demo_bundle_in, probe, precision, element
) -> None:
    eight = demo_bundle_in(precision)
    assert eight.spec.space.fingerprint == bundle.spec.space.fingerprint
    pixels = np.stack([preprocess(query.image, bundle.spec.preprocess) for query in probe.queries])
    layers = quantised_layers(bundle.graph_file("vision_encoder"), precision, {"pixels": pixels})
    quantised = onnx.load(eight.graph_file("vision_encoder"))
    linear = [node for node in quantised.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    eight_bit = {node.output[0] for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    fed = {node.name for node in linear if node.input[0] in eight_bit}
    assert len(fed) == len(layers)
    assert len(fed) >= 12
    assert "node_matmul" in {node.name for node in linear} - fed
    scales = {tensor.name: tensor for tensor in quantised.graph.initializer}
    zero_points = [scales[node.input[2]] for node in quantised.graph.node if node.op_type == "QuantizeLinear"]
    assert all(tensor.data_type == element for tensor in zero_points)
    assert not any(onnx.numpy_helper.to_array(tensor).astype(np.float32).any() for tensor in zero_points)


def test_an_export_never_replaces_something_else(weights, probe, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="was not written by `cirrus export`"):
        export(demo_request(weights, tmp_path), probe)
    assert (tmp_path / "thesis.tex").exists()


def test_zero_shot_clip_answers_image_text_and_both(clip_bundle, photos) -> None:
    encoder = LocalEncoder(clip_bundle)
    image = sorted(photos.iterdir())[0]
    alone, both, text, again = encoder.encode_queries(
        [image, image, None, image], [None, "a red dress", "a red dress", ""]
    )
    np.testing.assert_allclose(alone, encoder.encode_targets([image])[0], atol=2e-6)
    np.testing.assert_allclose(alone, again, atol=2e-6)
    mean = alone + text
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean), atol=2e-6)


@pytest.mark.parametrize(
    ("flavour", "platform", "backend"),
    [
        (Flavour.PYTHON, "", "python"),
        (Flavour.ONNXRUNTIME, "onnxruntime_onnx", ""),
        (Flavour.TENSORRT, "tensorrt_plan", ""),
    ],
)
def test_every_flavour_is_a_valid_repository(bundle, tmp_path, flavour, platform, backend) -> None:
    copied = tmp_path / "bundle"
    shutil.copytree(bundle.root, copied)
    if flavour is Flavour.TENSORRT:
        with pytest.raises(ExportError, match=r"gallery\.plan"):
            write_repository(copied, bundle.spec, flavour, tmp_path / "repository")
        (copied / "engines").mkdir()
        for graph in bundle.spec.graphs:
            (copied / "engines" / f"{graph}.plan").touch()
    write_repository(copied, bundle.spec, flavour, tmp_path / "repository")
    configs = {}
    for path in (tmp_path / "repository").glob("*/config.pbtxt"):
        configs[path.parent.name] = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    assert set(configs) == {
        "image_preprocess",
        "tokenize",
        "vision_encoder",
        "text_encoder",
        "query_head",
        "gallery",
        "encode_query",
        "encode_target",
    }
    for name in ("vision_encoder", "text_encoder", "query_head", "gallery"):
        assert (configs[name].platform, configs[name].backend) == (platform, backend)
        assert configs[name].max_batch_size == bundle.spec.max_batch
        assert configs[name].dynamic_batching.default_queue_policy.max_queue_size > 0
        assert configs[name].model_warmup
        if flavour is Flavour.ONNXRUNTIME:
            (cuda,) = configs[name].optimization.execution_accelerators.gpu_execution_accelerator
            assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    delays = {name: config.dynamic_batching.max_queue_delay_microseconds for name, config in configs.items()}
    assert {name for name, delay in delays.items() if delay == max(delays.values())} == {"vision_encoder", "gallery"}
    inflight = configs["encode_query"].ensemble_scheduling.max_inflight_requests
    assert (inflight > 0) == (flavour is not Flavour.PYTHON)


@pytest.mark.export
@pytest.mark.parametrize("name", ["demo_bundle", "clip_bundle"])
def test_the_canary_of_an_export_is_passed_here_at_every_stage(request: pytest.FixtureRequest, name: str) -> None:
    made: Bundle = request.getfixturevalue(name)
    canary = read_canary(made)
    assert canary is not None
    assert set(canary.embeddings) == set(made.spec.ensembles)
    result = replay(canary, made.spec, LocalRunner(LocalEncoder(made)))
    result.check("this process")
    assert result.lowest > 0.99999


def test_a_request_takes_strings(tmp_path) -> None:
    request = ExportRequest("clip", "cirrus-demo", "random", None, str(tmp_path / "bundle"), precision="int8")
    assert (request.out, request.precision) == (tmp_path / "bundle", Precision.INT8)
    assert request.precision is Precision.INT8
    with pytest.raises(InvalidInput, match="precision is 'half': give 'fp32', 'fp16', 'bf16', 'int8', 'fp8'"):
        ExportRequest("clip", "cirrus-demo", "random", None, tmp_path, precision="half")
