"""`cirrus compile --for`: NVIDIA's real compiler, on a machine with or without a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest

from cirrus_client import LocalEncoder, TritonEncoder, doctor
from cirrus_client.bundle import Bundle, DType, GraphSpec, Precision, TensorSpec
from cirrus_client.engines import EngineName, nvidia, open_graph, open_served_graph
from cirrus_client.errors import EngineError, ExportError
from cirrus_client.plans import BatchProfile, Fusion, Gpu, Library, has_plans, plan_file, read_plans, refusal
from cirrus_client.triton.repository import read_repository
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.compile.ahead_of_time import build_ahead, compile_ahead
from cirrus_export.compile.cards import CARDS, capabilities_of, is_supported
from cirrus_export.compile.plan_builder import batch_profiles
from tests.export.compiled import needs_rtx
from tests.export.tensorrt_names import MODULES_OF_RTX, USED, USED_OF_RTX, accepts, ask, names_in_the_code

pytestmark = needs_rtx
BATCH = (BatchProfile(smallest=1, tuned=1, largest=1), BatchProfile(smallest=1, tuned=4, largest=8))
L4 = Gpu(name="NVIDIA L4", compute_capability="8.9")
NO_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")


@pytest.fixture
def copied(bundle, tmp_path) -> Bundle:
    root = tmp_path / "bundle"
    shutil.copytree(bundle.root, root)
    return Bundle.open(root)


@pytest.fixture(scope="module")
def compiled(bundle, tmp_path_factory) -> Bundle:
    """A copy of a bundle with plans for L4 and A10; no test may change it."""
    root = tmp_path_factory.mktemp("compiled") / "bundle"
    shutil.copytree(bundle.root, root)
    made = Bundle.open(root)
    compile_ahead(made, ["l4", "a10", "sm89"])
    return made


def cirrus(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cirrus_client.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def small_graph(tmp_path, text: str):
    """A graph [B, 4] -> [B, 4] from ONNX's own text form."""
    path = tmp_path / "small.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}'), path)
    spec = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(4,))
    return path, GraphSpec(file="graphs/small.onnx", inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),))


def test_a_bundle_is_compiled_for_two_cards_without_a_gpu(compiled) -> None:
    written = read_plans(compiled.root, Library.RTX)
    assert (written.gpu, written.compute_capabilities) == (None, ("8.6", "8.9"))
    assert not written.were_run
    assert set(written.plans) == set(compiled.spec.graphs)
    for graph in compiled.spec.graphs:
        assert plan_file(compiled, written, graph).stat().st_size > 0
    assert {plan.profiles for plan in written.plans.values()} == {batch_profiles(Library.RTX, compiled.spec.max_batch)}
    assert not has_plans(compiled.root, Library.TENSORRT)
    version = nvidia.load_tensorrt_rtx().__version__
    assert refusal(written, version, L4) is None
    assert "compute capability 8.6 and 8.9; here is NVIDIA L40 (9.9)" in str(
        refusal(written, version, Gpu(name="NVIDIA L40", compute_capability="9.9"))
    )
    assert "here is TensorRT for RTX 1.8.0" in str(refusal(written, "1.8.0", L4))


@NO_GPU
def test_without_a_gpu_plans_are_listed_and_refused_by_name(compiled) -> None:
    finding = doctor.examine(compiled)[-1]
    assert finding.state is doctor.State.ABSENT
    for part in ("built with TensorRT for RTX", "for compute capability 8.6 and 8.9", "no NVIDIA GPU can be used here"):
        assert part in finding.found
    assert finding.way_out.endswith(f"cirrus compile {compiled.root} --for CARD")
    with pytest.raises(EngineError, match="no NVIDIA GPU can be used here"):
        open_graph(compiled, "gallery", engine=EngineName.TENSORRT_RTX)
    verified = cirrus("verify", compiled.root)
    assert verified.returncode == 0
    assert "for compute capability 8.6 and 8.9; not run yet" in " ".join(verified.stdout.split())


@NO_GPU
def test_auto_runs_on_another_engine_and_says_why(compiled, caplog) -> None:
    with caplog.at_level("WARNING", logger="cirrus_client"):
        engine = open_graph(compiled, "query_head")
    assert "TensorRT for RTX" not in engine.device
    assert "query_head does not run on its TensorRT for RTX plan" in caplog.text


@NO_GPU
def test_a_served_model_has_its_plan_and_runs_on_another_engine_without_a_gpu(compiled, caplog) -> None:
    repository = compiled.root / "triton" / "python"
    read_repository(repository)
    for graph in ("gallery", "query_head"):
        version = repository / graph / "1"
        assert (version / "engines-rtx" / f"{graph}.plan").samefile(compiled.root / "engines-rtx" / f"{graph}.plan")
        with caplog.at_level("WARNING", logger="cirrus_client"):
            engine = open_served_graph(version / f"{graph}.onnx", compiled.spec.precision)
        assert "TensorRT for RTX" not in engine.device
        assert f"{graph} does not run on its TensorRT for RTX plan: no NVIDIA GPU can be used here" in caplog.text


@pytest.mark.triton
def test_triton_serves_a_bundle_with_plans_that_do_not_run_here(compiled, photos) -> None:
    photo = sorted(photos.iterdir())[0]
    http, grpc, metrics = free_ports(3)
    repository = compiled.root / "triton" / "python"
    with (
        TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics) as server,
        TritonEncoder(server.grpc_url) as served,
    ):
        found = served.encode_targets([photo])
    np.testing.assert_allclose(found, LocalEncoder(compiled).encode_targets([photo]), atol=1e-4)


def test_a_plan_whose_bytes_changed_is_refused(compiled, tmp_path) -> None:
    root = shutil.copytree(compiled.root, tmp_path / "bundle")
    (root / "engines-rtx" / "gallery.plan").write_bytes(b"another")
    assert "engines-rtx/gallery.plan is corrupted" in doctor.examine(Bundle.open(root))[-1].found


def test_a_refused_graph_is_named_and_the_others_keep_their_plans(copied) -> None:
    file = copied.graph_file("query_head")
    model = onnx.load(file)
    model.graph.node[0].op_type, model.graph.node[0].domain = "NoSuchOperator", "nowhere"
    model.opset_import.add(domain="nowhere", version=1)
    name = model.graph.node[0].name
    onnx.save(model, file)
    with pytest.raises(ExportError, match=rf"1 of 5 graphs have no plan.*{name} \(NoSuchOperator\)"):
        compile_ahead(copied, ["l4"])
    record = read_plans(copied.root, Library.RTX)
    assert set(record.refused) == {"query_head"}
    assert set(record.plans) == set(copied.spec.graphs) - {"query_head"}
    assert "NoSuchOperator" in doctor.examine(copied)[-1].found


def test_if_every_graph_is_refused_older_plans_stay(compiled, tmp_path) -> None:
    copied = Bundle.open(shutil.copytree(compiled.root, tmp_path / "bundle"))
    for graph in copied.spec.graphs:
        copied.graph_file(graph).write_bytes(b"no ONNX")
    with pytest.raises(ExportError, match="no graph could be compiled"):
        compile_ahead(copied, ["a10"])
    assert read_plans(copied.root, Library.RTX) == read_plans(compiled.root, Library.RTX)


@pytest.mark.parametrize(
    ("targets", "precision", "reason"),
    [
        (["h100"], Precision.FP32, "does not run on this card; compile with TensorRT, on the machine"),
        (["l5"], Precision.FP32, "not a card or architecture of a2, a10"),
        (["l4", "a10"], Precision.FP8, r"--for a10: compute capability 8\.6 has no fp8.*int8 or fp16"),
    ],
)
def test_a_card_that_can_not_run_the_bundle_is_refused_before_anything_is_built(targets, precision, reason) -> None:
    with pytest.raises(ExportError, match=reason):
        capabilities_of(targets, precision)


def test_the_compiler_knows_every_card(tmp_path) -> None:
    graph = small_graph(tmp_path, "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    for capability in sorted(set(CARDS.values())):
        plan, warnings = build_ahead(*graph, BATCH, [capability])
        assert memoryview(plan).nbytes > 0
        assert warnings == ()
    assert not is_supported("9.0")
    assert capabilities_of(["rtx-pro-6000", "L4"], Precision.FP8) == ("8.9", "12.0")


def test_the_compiler_says_why_it_refuses_batch_sizes(tmp_path) -> None:
    graph = small_graph(tmp_path, "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    with pytest.raises(ExportError, match=r"can't compile .*small\.onnx: .*[Pp]rofile"):
        build_ahead(*graph, [BatchProfile(smallest=8, tuned=4, largest=2)], ["8.9"])


def test_a_refusal_gives_the_reasons_of_its_own_graph_alone(tmp_path) -> None:
    graph = small_graph(tmp_path, "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    library = nvidia.load_tensorrt_rtx()
    nvidia.tensorrt_log(library).log(library.ILogger.Severity.ERROR, "of an earlier graph")
    with pytest.raises(ExportError) as error:
        build_ahead(*graph, [BatchProfile(smallest=8, tuned=4, largest=2)], ["8.9"])
    assert "of an earlier graph" not in str(error.value)


def test_every_name_is_in_the_real_library_with_its_signature() -> None:
    assert names_in_the_code(MODULES_OF_RTX)[0] == set(USED_OF_RTX)
    used = USED | USED_OF_RTX
    answers = ask(None, "tensorrt_rtx_bindings", sorted(used))
    assert [name for name, answer in answers.items() if answer is None] == []
    for name, arguments in used.items():
        if arguments is not None:
            assert accepts(answers[name], arguments), f"{name}{arguments} is not in: {answers[name]}"


@pytest.mark.parametrize("option", ["--version-compatible", "--hardware-compatible", "--for-triton=26.07"])
def test_what_tensorrt_for_rtx_can_not_do_is_refused(bundle, option) -> None:
    answer = cirrus("compile", bundle.root, "--for", "l4", option)
    assert answer.returncode == 2
    assert "not together with --for" in " ".join(answer.stderr.split())
    assert not has_plans(bundle.root, Library.RTX)


def test_attention_is_not_fused_in_float32(compiled) -> None:
    assert read_plans(compiled.root, Library.RTX).plans["vision_encoder"].attention.fusion is Fusion.UNFUSED
