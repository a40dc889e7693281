"""Engines run the same graph to the same numbers, and the choice between them says why."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.engines import EngineName, candidates, choice, choose, open_engine
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine, available_providers
from cirrus_client.errors import BundleError, EngineError

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed (pip install openvino)"
)
needs_a_choice = pytest.mark.skipif(
    len(candidates(Precision.FP32)) < 2, reason="only one engine here runs fp32 graphs: there is nothing to choose"
)
on_gpu = "CUDAExecutionProvider" in available_providers()
ENGINES = [EngineName.ONNXRUNTIME, pytest.param(EngineName.OPENVINO, marks=needs_openvino)]


@pytest.fixture
def pixels() -> dict[str, np.ndarray]:
    return {"pixels": np.random.default_rng(3).standard_normal((5, 3, 96, 96), dtype=np.float32)}


@pytest.fixture
def gallery_graph(bundle: Bundle) -> Path:
    return bundle.graph_file("gallery")


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(-1) / (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1))


@pytest.fixture(params=["tiny", pytest.param("demo", marks=pytest.mark.export)])
def model(request: pytest.FixtureRequest) -> Bundle:
    """A hand-made bundle, and one with the graphs of a real transformer."""
    return request.getfixturevalue(f"{request.param}_bundle")


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("graph", ["vision_encoder", "text_encoder", "query_head", "target_head", "gallery"])
def test_an_engine_agrees_with_the_contract_and_with_onnx_runtime(model: Bundle, graph: str, name: EngineName) -> None:
    path = model.graph_file(graph)
    spec = model.spec.graphs[graph]
    generator = np.random.default_rng(0)
    engine = open_engine(path, Precision.FP32, engine=name)
    assert set(engine.inputs) == set(spec.inputs)
    assert set(engine.outputs) == set(spec.outputs)
    engine.warm_up(batch_size=2)
    reference = open_engine(path, Precision.FP32, engine=EngineName.ONNXRUNTIME)
    for shapes, length in zip(spec.input_shapes(), spec.text_lengths or (0,), strict=True):
        inputs = {
            tensor.name: generator.standard_normal((3, *shapes[tensor.name]), dtype=np.float32)
            if tensor.dtype == "float32"
            else generator.integers(1, 400, (3, *shapes[tensor.name]))
            for tensor in spec.inputs
        }
        found, expected = engine(inputs), reference(inputs)
        for tensor in spec.outputs:
            assert found[tensor.name].shape == (3, *tensor.sized(length))
            np.testing.assert_allclose(found[tensor.name], expected[tensor.name], atol=2e-4)


@needs_openvino
@pytest.mark.parametrize("rows", [1, 2, 5, 33])
def test_a_batch_that_is_split_among_streams_comes_back_whole_and_in_order(gallery_graph: Path, rows: int) -> None:
    pixels = {"pixels": np.random.default_rng(rows).standard_normal((rows, 3, 96, 96), dtype=np.float32)}
    one, streams = (
        open_engine(gallery_graph, Precision.FP32, engine=EngineName.OPENVINO, bulk=bulk) for bulk in (False, True)
    )
    expected = one(pixels)["target_embedding"]
    for _ in range(2):
        np.testing.assert_allclose(streams(pixels)["target_embedding"], expected, atol=1e-5)


def test_only_graphs_that_no_query_needs_are_for_bulk(bundle: Bundle) -> None:
    bulk = {graph for graph in bundle.spec.graphs if bundle.spec.is_for_bulk(graph)}
    assert bulk == {"gallery", "target_head"}


@needs_openvino
def test_openvino_computes_float32_unless_the_bundle_says_otherwise(gallery_graph: Path, pixels) -> None:
    exact = open_engine(gallery_graph, Precision.FP32, engine=EngineName.OPENVINO)
    assert exact.device.endswith("CPU, f32")
    reference = open_engine(gallery_graph, Precision.FP32, engine=EngineName.ONNXRUNTIME)
    drift = 1 - cosines(exact(pixels)["target_embedding"], reference(pixels)["target_embedding"])
    assert drift.max() < 1e-6


@needs_openvino
@pytest.mark.skipif(not candidates(Precision.BF16), reason="this CPU has no bfloat16 arithmetic")
def test_openvino_adds_up_in_float32_what_a_bfloat16_graph_adds_up_so(tmp_path: Path) -> None:
    """256 + 1 + 0 - 256, as a transformer's blocks add: bfloat16 has no 257."""
    steps = [
        ("MatMul", "ones", "large", "256"),
        ("MatMul", "ones", "small", "1"),
        ("Add", "large", "257", "small"),
        ("MatMul", "257", "nothing", "0"),
        ("Add", "257", "still 257", "nothing"),
        ("MatMul", "ones", "negative", "-256"),
        ("Add", "still 257", "one", "negative"),
        ("MatMul", "one", "out", "1"),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, [left, right], [out]) for kind, left, out, right in steps],
        "sums",
        [helper.make_tensor_value_info("ones", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(int(name) * np.eye(8, dtype=np.float32), name) for name in ("256", "1", "0", "-256")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "sums")
    engine = open_engine(tmp_path / "sums", Precision.BF16, engine=EngineName.OPENVINO)
    assert (engine({"ones": np.ones((2, 8), np.float32)})["out"] == 1).all()


_OPENED_AND_CLOSED = """
import signal, subprocess, sys
from pathlib import Path
from cirrus_client.bundle import Precision
from cirrus_client.engines import EngineName, open_engine

first, second = (open_engine(Path(sys.argv[1]), Precision.FP32, engine=EngineName.OPENVINO) for _ in range(2))
del first
del second
signal.signal(signal.SIGCHLD, lambda *_: print("heard"))
subprocess.run(["true"], check=True)
"""


@needs_openvino
@pytest.mark.slow
def test_signals_are_handled_after_engines_have_closed(gallery_graph: Path) -> None:
    """Two OpenVINO cores would leave a freed signal stack behind."""
    done = subprocess.run(
        [sys.executable, "-c", _OPENED_AND_CLOSED, str(gallery_graph)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "heard" in done.stdout


@pytest.mark.parametrize("name", ENGINES)
def test_an_answer_stays_when_the_engine_runs_again(gallery_graph: Path, pixels, name: EngineName) -> None:
    engine = open_engine(gallery_graph, Precision.FP32, engine=name)
    first = engine(pixels)["target_embedding"]
    kept = first.copy()
    engine({"pixels": pixels["pixels"][::-1].copy()})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input pixels is missing; given are none"),
        ({"pixels": np.zeros((2, 3, 96, 95), np.float32)}, r"\[2, 3, 96, 95\]; the graph takes"),
        ({"pixels": np.zeros((2, 3, 96, 96), np.float64)}, "input pixels is float64"),
        ({"pixels": np.zeros((3, 96, 96), np.float32)}, "the graph takes float32"),
    ],
)  # fmt: skip
def test_a_wrong_input_is_named(gallery_graph: Path, inputs, message: str, name: EngineName) -> None:
    with pytest.raises(EngineError, match=message):
        open_engine(gallery_graph, Precision.FP32, engine=name)(inputs)


@pytest.mark.parametrize("name", ENGINES)
def test_token_ids_may_come_from_another_graph(name: EngineName, tmp_path: Path) -> None:
    """ONNX Runtime answers with C's `long long`, where NumPy's int64 is a `long`."""
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", 3]) for name in ("ids", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["ids"], ["same"])], "same", ids[:1], ids[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "ids")
    engine = open_engine(tmp_path / "ids", Precision.FP32, engine=name)
    given = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(engine({"ids": given.astype(np.longlong)})["same"], given)


@pytest.mark.skipif(on_gpu, reason="ONNX Runtime has GPU providers here")
def test_engines_that_are_not_here_say_so(bundle: Bundle, gallery_graph: Path) -> None:
    with pytest.raises(EngineError, match="this ONNX Runtime has no TensorrtExecutionProvider"):
        open_engine(gallery_graph, Precision.FP32, engine=EngineName.ONNXRUNTIME_TENSORRT)
    with pytest.raises(EngineError, match="TensorRT runs the plans of a bundle, not ONNX files"):
        open_engine(gallery_graph, Precision.FP32, engine=EngineName.TENSORRT)
    with pytest.raises(BundleError, match="has no TensorRT plans; on the machine that serves: cirrus compile"):
        LocalEncoder(bundle, engine=EngineName.TENSORRT).graph("gallery")


@pytest.mark.gpu
def test_float32_is_no_tf32_on_a_gpu(gallery_graph: Path, pixels) -> None:
    """TF32 keeps 10 bits of a product's factors, so that outputs of length 1 differ by about 0.001."""
    exact = OnnxRuntimeEngine(gallery_graph, Precision.FP32, providers=["CPUExecutionProvider"])(pixels)
    found = OnnxRuntimeEngine(gallery_graph, Precision.FP32, providers=["CUDAExecutionProvider"])(pixels)
    for name, expected in exact.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


@pytest.mark.skipif(on_gpu, reason="a GPU runs it")
def test_the_cuda_provider_is_asked_for_float32(gallery_graph: Path, monkeypatch) -> None:
    asked = []

    def without_a_gpu(path: Path, *, providers: list, sess_options: object) -> None:
        asked.extend(providers)
        raise RuntimeError("no GPU")

    monkeypatch.setattr("onnxruntime.InferenceSession", without_a_gpu)
    monkeypatch.setattr("cirrus_client.engines.onnx_runtime.available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(EngineError, match="no GPU"):
        OnnxRuntimeEngine(gallery_graph, Precision.FP32)
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"})]


@pytest.mark.parametrize("name", ENGINES)
def test_a_broken_graph_is_named(tmp_path: Path, name: EngineName) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"can't load .*broken\.onnx"):
        open_engine(tmp_path / "broken.onnx", Precision.FP32, engine=name)


@needs_a_choice
def test_the_choice_is_measured_says_why_and_is_kept(gallery_graph: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = choose(gallery_graph, Precision.FP32)
    assert chosen.engine in candidates(Precision.FP32)
    assert "times as fast as" in chosen.why
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == 1
    assert choose(gallery_graph, Precision.FP32) == chosen
    assert choose(gallery_graph, Precision.FP32, threads=1).engine in candidates(Precision.FP32)
    assert len(list(tmp_path.rglob("*.json"))) == 2
    kept[0].write_text("{}")
    assert choose(gallery_graph, Precision.FP32).engine in candidates(Precision.FP32)


@needs_a_choice
def test_a_graph_that_was_measured_is_not_loaded_again(gallery_graph: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load, loaded = choice._load, []

    def counted(*arguments):
        loaded.append(arguments[-1])
        return load(*arguments)

    monkeypatch.setattr(choice, "_load", counted)
    first = open_engine(gallery_graph, Precision.FP32)
    assert loaded == candidates(Precision.FP32)
    loaded.clear()
    assert open_engine(gallery_graph, Precision.FP32).device == first.device
    assert len(loaded) == 1


@needs_a_choice
def test_a_choice_stays_with_a_bundle_that_is_moved_and_not_with_a_copy(
    gallery_graph: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written, moved, copy = (tmp_path / name / "gallery.onnx" for name in ("written", "moved", "copy"))
    written.parent.mkdir()
    shutil.copyfile(gallery_graph, written)
    chosen = choose(written, Precision.FP32)
    shutil.copytree(written.parent, copy.parent)
    written.parent.rename(moved.parent)
    assert choose(moved, Precision.FP32) == chosen
    assert len(list(tmp_path.rglob("*.json"))) == 1
    choose(copy, Precision.FP32)
    assert len(list(tmp_path.rglob("*.json"))) == 2


@needs_a_choice
def test_an_engine_that_disagrees_is_not_chosen(gallery_graph: Path, tmp_path: Path, monkeypatch) -> None:
    from cirrus_client.engines import openvino

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    honest = openvino.OpenVinoEngine.run
    monkeypatch.setattr(
        openvino.OpenVinoEngine,
        "run",
        lambda self, inputs: {name: -value for name, value in honest(self, inputs).items()},
    )
    chosen = choose(gallery_graph, Precision.FP32)
    assert chosen.engine == EngineName.ONNXRUNTIME
    assert "is excluded, its cosine" in chosen.why


@needs_a_choice
@pytest.mark.parametrize("refuses", ["openvino:OpenVinoEngine", "onnx_runtime:OnnxRuntimeEngine"])
def test_an_engine_that_cannot_load_a_graph_leaves_it_to_the_others(
    refuses: str, gallery_graph: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    """As one does that lacks an operator of it."""
    module, _, name = refuses.partition(":")
    kind = getattr(importlib.import_module(f"cirrus_client.engines.{module}"), name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(self, path: Path, *arguments: object, **options: object) -> None:
        raise EngineError(f"it lacks an operator of {path}")

    monkeypatch.setattr(kind, "__init__", refuse)
    opened = open_engine(gallery_graph, Precision.FP32)
    assert not isinstance(opened, kind)
    assert "it lacks an operator of" in caplog.text


@needs_a_choice
@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize("engine", ["openvino:OpenVinoEngine", "onnx_runtime:OnnxRuntimeEngine"])
@pytest.mark.filterwarnings("error")
def test_an_answer_that_is_zero_or_not_finite_fits_no_engine_but_the_reference(
    engine: str, value: float, gallery_graph: Path, tmp_path: Path, monkeypatch
) -> None:
    module, _, name = engine.partition(":")
    kind = getattr(importlib.import_module(f"cirrus_client.engines.{module}"), name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    honest = kind.run

    def run(self, inputs):
        outputs = {name: output.copy() for name, output in honest(self, inputs).items()}
        for output in outputs.values():
            output[0] = value
        return outputs

    monkeypatch.setattr(kind, "run", run)
    chosen = choose(gallery_graph, Precision.FP32)
    assert chosen.engine == EngineName.ONNXRUNTIME
    assert "is excluded, its cosine to" in chosen.why


@needs_a_choice
def test_a_choice_that_cannot_be_kept_is_still_made(gallery_graph: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose(gallery_graph, Precision.FP32).engine in candidates(Precision.FP32)
    assert "nothing is kept" in caplog.text


@needs_openvino
@pytest.mark.skipif(on_gpu, reason="ONNX Runtime runs every precision on a GPU")
def test_no_engine_for_a_precision_is_an_error_with_a_way_out(gallery_graph: Path, monkeypatch) -> None:
    monkeypatch.setattr("cirrus_client.engines.openvino.capabilities", lambda: ["FP32", "INT8"])
    with pytest.raises(EngineError, match="no engine here runs bf16 graphs"):
        open_engine(gallery_graph, Precision.BF16)
    with pytest.raises(EngineError, match="OpenVINO has no bf16 arithmetic on this CPU"):
        open_engine(gallery_graph, Precision.BF16, engine=EngineName.OPENVINO)
