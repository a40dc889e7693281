"""TensorRT: the names that the code uses, releases, records, layers; no plan is compiled here, and none is faked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

from cirrus_client import doctor
from cirrus_client.bundle import Bundle
from cirrus_client.engines import EngineName, nvidia, open_graph, tensorrt
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine
from cirrus_client.engines.tensorrt import TensorRtEngine
from cirrus_client.errors import BundleError, EngineError, ExportError, FidelityError
from cirrus_client.files import sha256_of_file, write_model
from cirrus_client.plans import (
    Fusion,
    Gpu,
    Library,
    PlanSpec,
    PlansSpec,
    graph_sha256,
    plan_file,
    read_plans,
    refusal,
    runs_on,
)
from cirrus_export.compile import tensorrt_engine
from cirrus_export.compile.engine_inspector import attention_of, count_attentions
from cirrus_export.compile.ngc_releases import check_release, ngc_releases, release_named
from cirrus_export.compile.plan_builder import batch_profiles
from cirrus_export.compile.tensorrt_engine import CompileOptions, compile_plans
from cirrus_export.gate.plan_fidelity import GraphValues, hold_to_graphs
from cirrus_export.pipeline import ExportRequest, export
from cirrus_export.repository import Flavour, write_repository
from tests.export.tensorrt_names import (
    BINDINGS,
    CUDA,
    USED,
    USED_OF_CUDA,
    accepts,
    ask,
    bindings,
    names_in_the_code,
    unpack,
)
from tests.test_boundaries import BLOCK_TORCH

H100 = Gpu(name="NVIDIA H100", compute_capability="9.0")


@pytest.fixture(scope="session")
def wheels(request):
    return request.config.cache.mkdir("tensorrt")


@pytest.fixture
def planned(bundle, tmp_path) -> Bundle:
    """A bundle with the record of plans that another machine compiled; the plans' content is not TensorRT's."""
    root = tmp_path / "planned"
    shutil.copytree(bundle.root, root)
    (root / "engines").mkdir()
    copied = Bundle.open(root)
    plans = {}
    for graph in copied.spec.graphs:
        path = root / "engines" / f"{graph}.plan"
        path.write_bytes(f"stands for the plan of {graph}".encode())
        plans[graph] = PlanSpec(
            file=f"engines/{graph}.plan",
            sha256=sha256_of_file(path),
            graph_sha256=graph_sha256(copied.spec, graph),
            profiles=batch_profiles(Library.TENSORRT, 64),
            attention=attention_of('{"Layers": []}', 1),
            cosine_min=1.0,
        )
    write_model(root / "engines" / "plans.json", record(plans=plans))
    return copied


def record(**changes) -> PlansSpec:
    values = {
        "tensorrt": "11.1.0.106",
        "gpu": "NVIDIA H100",
        "compute_capabilities": ("9.0",),
        "version_compatible": False,
        "hardware_compatible": False,
        "plans": {},
    }
    return PlansSpec(**(values | changes))


def here(monkeypatch, *, version: str, gpu: Gpu) -> None:
    """Stand for a machine with this TensorRT and GPU, as far as their names are asked."""
    module_here = SimpleNamespace(__version__=version)
    for module in (nvidia, tensorrt):
        monkeypatch.setattr(module, "load_library", lambda library: module_here)
    monkeypatch.setattr(tensorrt_engine, "load_tensorrt", lambda: module_here)
    for module in (nvidia, tensorrt_engine, tensorrt):
        monkeypatch.setattr(module, "this_gpu", lambda: gpu)


def test_every_name_that_the_code_uses_is_listed() -> None:
    tensorrt, cuda = names_in_the_code()
    assert tensorrt == set(USED)
    assert cuda == set(USED_OF_CUDA)


@pytest.mark.network
@pytest.mark.parametrize("version", BINDINGS)
def test_tensorrt_has_every_name_and_signature(version, wheels, tmp_path) -> None:
    answers = ask(bindings(BINDINGS[version], wheels, tmp_path / "bindings"), "tensorrt_bindings", sorted(USED))
    assert [name for name, answer in answers.items() if answer is None] == []
    for name, arguments in USED.items():
        if arguments is not None:
            assert accepts(answers[name], arguments), f"{name}{arguments} is not in: {answers[name]}"


@pytest.mark.network
@pytest.mark.parametrize("version", BINDINGS)
def test_what_needs_no_gpu_runs_on_the_real_bindings(version, wheels, tmp_path) -> None:
    script = """
import numpy, tensorrt_bindings as tensorrt
from cirrus_client.engines.nvidia import tensorrt_log, tensorrt_reason
severity = tensorrt.ILogger.Severity
tensorrt_log(tensorrt).log(severity.WARNING, "slow")
tensorrt_log(tensorrt).log(severity.ERROR, "wrong")
print(tensorrt_reason(tensorrt), "|", tensorrt_reason(tensorrt))
print(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), tuple(tensorrt.Dims([-1, 3])))
print(*(numpy.dtype(tensorrt.nptype(kind)).name for kind in (tensorrt.float32, tensorrt.int64)))
"""
    folder = bindings(BINDINGS[version], wheels, tmp_path / "bindings")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    flag = "1" if version == "11" else "2"
    assert done.stdout.splitlines() == ["wrong | it gives no reason", f"{flag} (-1, 3)", "float32 int64"], done.stderr


def test_a_signature_that_differs_is_noticed() -> None:
    docstring = "f(self: tensorrt.X, name: str, shape: tuple[int, ...], more: int = 0) -> bool"
    assert accepts(docstring, ("name", "shape"))
    assert not accepts(docstring, ("name",))
    assert not accepts(docstring, ("shape", "name"))


@pytest.mark.network
def test_cuda_has_every_name_and_signature(wheels) -> None:
    answers = ask(unpack(CUDA, wheels), "cuda.bindings.runtime", sorted(USED_OF_CUDA))
    for name, arguments in USED_OF_CUDA.items():
        assert answers[name] is not None, name
        if arguments is not None:
            written = answers[name].splitlines()[0].removeprefix(f"{name}(").removesuffix(")")
            taken = tuple(part.split(":")[0].split()[-1] for part in written.split(",") if part.strip())
            assert taken == arguments, name


def test_every_release_has_a_source() -> None:
    table = ngc_releases()
    assert {release.source for release in table.releases.values()} <= set(table.sources)
    assert list(table.releases) == sorted(table.releases)
    assert table.releases["25.10"].tensorrt == "10.13.3.9"
    assert table.releases["26.07"].tensorrt == "11.1.0.106"


def test_an_unknown_release_lists_the_nearest() -> None:
    with pytest.raises(ExportError, match=r"26\.12.*nearest it has are 26\.05, 26\.06, 26\.07, 26\.08"):
        release_named("26.12")
    with pytest.raises(ExportError, match="named by year and month"):
        release_named("latest")


def test_a_mismatch_says_what_is_here_what_is_wanted_and_how_to_mend_it() -> None:
    with pytest.raises(
        ExportError, match=r"26\.07.*has TensorRT 11\.1\.0\.106.*here is TensorRT 11\.4\.0\.106"
    ) as error:
        check_release("26.07", "11.4.0.106", version_compatible=False)
    assert "pip install 'tensorrt-cu13==11.1.0.*'" in str(error.value)
    check_release("26.07", "11.1.0.106.post1", version_compatible=False)


@pytest.mark.parametrize(
    ("built", "runs", "exactly", "compatible"),
    [
        ("10.16.1.11", "10.16.1.11", True, True),
        ("10.14.1.48.post1", "10.14.1.48", True, True),
        ("11.0.0.114", "11.0", True, True),
        ("10.6.0", "10.6.0.26", True, True),
        ("10.13.2.6", "10.13.3.9", False, True),
        ("10.13.3.9", "10.13.2.6", False, False),
        ("10.16.1.11", "11.1.0.106", False, True),
        ("11.1.0.106", "10.16.1.11", False, False),
        ("10.16.1.11", "12.0", False, False),
    ],
)
def test_where_a_plan_of_one_tensorrt_runs(built, runs, exactly, compatible) -> None:
    assert runs_on(built, runs, version_compatible=False) == exactly
    assert runs_on(built, runs, version_compatible=True) == compatible


def test_export_for_another_triton_stops_before_anything_is_written(weights, probe, tmp_path, monkeypatch) -> None:
    here(monkeypatch, version="11.4.0.106", gpu=H100)
    out = tmp_path / "bundle"
    request = ExportRequest(
        recipe="transagg-union",
        backbone="cirrus-demo",
        pretrained=str(weights.clip),
        head=str(weights.head),
        out=out,
        for_triton="26.07",
    )
    with pytest.raises(ExportError, match=r"here is TensorRT 11\.4\.0\.106"):
        export(request, probe)
    assert list(tmp_path.iterdir()) == []


def test_without_tensorrt_the_error_says_what_to_install(bundle, probe, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"TensorRT can't be loaded.*pip install 'cirrus-cir\[gpu\]'"):
        compile_plans(bundle, probe, CompileOptions())
    assert not (bundle.root / "engines").exists()


def test_a_tensorrt_before_10_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.3"))
    with pytest.raises(EngineError, match=r"TensorRT 8\.6\.3 is installed; Cirrus needs 10 or newer"):
        nvidia.load_tensorrt()


@pytest.mark.network
def test_without_a_gpu_the_error_carries_cudas_name_of_it(wheels) -> None:
    script = "from cirrus_client.engines.nvidia import this_gpu; this_gpu()"
    path = os.pathsep.join([str(unpack(CUDA, wheels)), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert re.search(r"EngineError: no NVIDIA GPU can be used here: CUDA answered cudaError\w+", done.stderr), (
        done.stderr
    )


def test_the_tensorrt_flavour_names_the_command_that_makes_plans(bundle, tmp_path) -> None:
    with pytest.raises(ExportError, match=f"cirrus compile {bundle.root}"):
        write_repository(bundle.root, bundle.spec, Flavour.TENSORRT, tmp_path / "triton")


def test_plans_are_read_and_make_a_repository(planned, tmp_path) -> None:
    found = read_plans(planned.root)
    assert found.tensorrt == "11.1.0.106"
    for graph in planned.spec.graphs:
        assert plan_file(planned, found, graph).name == f"{graph}.plan"
    write_repository(planned.root, planned.spec, Flavour.TENSORRT, tmp_path / "triton")
    assert (tmp_path / "triton" / "gallery" / "1" / "gallery.plan").is_file()


@pytest.mark.parametrize("damage", ["absent", "invalid", "no plan", "other plan", "other graph"])
def test_a_damaged_record_or_plan_is_named(planned, damage) -> None:
    engines = planned.root / "engines"
    content = json.loads((engines / "plans.json").read_text())
    reason = {
        "absent": "has no TensorRT plans",
        "invalid": "Field required",
        "no plan": "has no plan of graph gallery",
        "other plan": r"engines/gallery\.plan is corrupted",
        "other graph": "was compiled from another graph gallery",
    }[damage]
    if damage == "invalid":
        del content["tensorrt"]
    elif damage == "no plan":
        del content["plans"]["gallery"]
    elif damage == "other plan":
        (engines / "gallery.plan").write_bytes(b"another")
    elif damage == "other graph":
        content["plans"]["gallery"]["graph_sha256"] = "0" * 64
    (engines / "plans.json").write_text(json.dumps(content))
    if damage == "absent":
        (engines / "plans.json").unlink()
    with pytest.raises(BundleError, match=reason) as error:
        plan_file(planned, read_plans(planned.root), "gallery")
    assert f"cirrus compile {planned.root}" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "capability", "runs"),
    [
        ({}, "9.0", True),
        ({}, "8.9", False),
        ({"hardware_compatible": True}, "8.9", True),
        ({"hardware_compatible": True}, "12.0", True),
        ({"hardware_compatible": True}, "7.5", False),
    ],
)
def test_a_plan_runs_on_its_own_gpu_or_where_it_was_made_compatible(changes, capability, runs) -> None:
    reason = refusal(record(**changes), "11.1.0.106", Gpu(name="another GPU", compute_capability=capability))
    assert (reason is None) == runs


def test_a_plan_of_another_version_is_refused_before_it_is_loaded(planned, monkeypatch) -> None:
    here(monkeypatch, version="10.16.1.11", gpu=H100)
    with pytest.raises(EngineError) as error:
        TensorRtEngine.of(planned, "gallery")
    for part in ("built with TensorRT 11.1.0.106 on NVIDIA H100 (compute capability 9.0)", "TensorRT 10.16.1.11"):
        assert part in str(error.value)


def test_a_graph_runs_on_its_plan_where_that_can_run_and_else_says_why_not(planned, monkeypatch, caplog) -> None:
    here(monkeypatch, version="11.1.0.106", gpu=Gpu(name="NVIDIA L4", compute_capability="8.9"))
    with caplog.at_level("INFO", logger="cirrus_client"):
        assert not isinstance(open_graph(planned, "target_head"), TensorRtEngine)
        assert "does not run on its TensorRT plan" in caplog.text
        assert "here is NVIDIA L4 (8.9), and the plans need the same" in caplog.text
        loaded = []
        monkeypatch.setattr(TensorRtEngine, "__init__", lambda self, path, **options: loaded.append(path))
        here(monkeypatch, version="11.1.0.106", gpu=H100)
        assert isinstance(open_graph(planned, "target_head"), TensorRtEngine)
    assert loaded == [planned.root / "engines" / "target_head.plan"]
    assert "target_head runs on tensorrt: a plan was compiled for this GPU" in caplog.text
    assert not isinstance(open_graph(planned, "target_head", engine=EngineName.ONNXRUNTIME), TensorRtEngine)


def test_host_code_in_plans_runs_only_on_the_users_word(planned, monkeypatch) -> None:
    path = planned.root / "engines" / "plans.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version_compatible": True}))
    here(monkeypatch, version="11.1.0.106", gpu=H100)
    allowed = []
    monkeypatch.setattr(TensorRtEngine, "__init__", lambda self, path, **options: allowed.append(options))
    with pytest.raises(EngineError, match=r"contain code .*--trust-plans"):
        TensorRtEngine.of(planned, "gallery")
    assert allowed == []
    TensorRtEngine.of(Bundle.open(planned.root, trust_plans=True), "gallery")
    assert allowed == [{"version_compatible": True}]


def test_the_doctor_says_whether_plans_run_here(planned, bundle, monkeypatch) -> None:
    here(monkeypatch, version="11.1.0.106", gpu=H100)
    assert doctor.examine(planned)[-1].state is doctor.State.OK
    here(monkeypatch, version="11.1.0.106", gpu=Gpu(name="NVIDIA L4", compute_capability="8.9"))
    finding = doctor.examine(planned)[-1]
    assert finding.state is doctor.State.ABSENT
    assert "here is NVIDIA L4 (8.9), and the plans need the same" in finding.found
    assert finding.way_out == f"on the machine that serves: cirrus compile {planned.root}"
    assert doctor.examine(bundle)[-1].found == "not compiled"


def layer(name: str, kind: str, tactic: str) -> dict[str, object]:
    """A layer as TensorRT's engine inspector describes it with detailed verbosity (TensorRT#4397)."""
    tensor = {"Name": "__mye56053", "Dimensions": [4, 40, 64], "Format/Datatype": "Half"}
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor],
        "Outputs": [tensor],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "[ONNX Layer: /encoder/layers.2/mha/attn/MatMul]",
    }


GEMM = layer("/encoder/layers_2/key/MatMul_myl0_16", "gemm", "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64")
MHA = layer("_gemm_mha_v2_myl0_17", "kgen", "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a")
SOFTMAX = layer("__myl_MaxSubExpSumDivMul_myl0_3", "kgen", "__myl_MaxSubExpSumDivMul_0x1f")


@pytest.mark.parametrize(
    ("layers", "attentions", "fusion", "evidence"),
    [
        ([GEMM, MHA, GEMM], 1, Fusion.FUSED, ("_gemm_mha_v2_myl0_17",)),
        ([GEMM, MHA, SOFTMAX], 2, Fusion.PARTLY, ("_gemm_mha_v2_myl0_17",)),
        ([GEMM, SOFTMAX], 1, Fusion.UNFUSED, (GEMM["Name"], SOFTMAX["Name"])),
        ([GEMM], 0, Fusion.NONE, (GEMM["Name"],)),
        ([], 1, Fusion.UNKNOWN, ()),
        (["_gemm_mha_v2_myl0_17"], 1, Fusion.FUSED, ("_gemm_mha_v2_myl0_17",)),
    ],
)
@pytest.mark.parametrize("beside", [{"Bindings": ["pixels"]}, {"I/O Tensors": [{"Name": "pixels", "IOMode": "Input"}]}])
def test_the_inspectors_layers_say_whether_attention_was_fused(layers, attentions, fusion, evidence, beside) -> None:
    found = attention_of(json.dumps({"Layers": layers} | beside), attentions)
    assert (found.fusion, found.evidence) == (fusion, evidence)


def test_attentions_are_counted_in_the_onnx_graph(bundle, clip_bundle, tmp_path) -> None:
    assert count_attentions(bundle.graph_file("vision_encoder")) == 4
    assert count_attentions(clip_bundle.graph_file("gallery")) == 3, "its last block is of the CLS token alone"
    assert count_attentions(bundle.graph_file("text_encoder")) == 3
    weighting = "g (float[N, 3] x) => (float[N, 3] y) { w = Softmax (x) y = Mul (w, x) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {weighting}'), tmp_path / "g.onnx")
    assert count_attentions(tmp_path / "g.onnx") == 0


def test_an_engine_that_reproduces_its_graphs_is_kept(bundle, probe) -> None:
    cosines = hold_to_graphs(
        bundle,
        GraphValues(bundle, probe),
        lambda graph: OnnxRuntimeEngine(bundle.graph_file(graph), bundle.spec.precision),
    )
    assert set(cosines) == set(bundle.spec.graphs)
    assert min(cosines.values()) > 0.99999


class Damaged(OnnxRuntimeEngine):
    """An engine whose results are noisy, or not numbers."""

    noise = 0.1

    def run(self, inputs):
        generator = np.random.default_rng(0)
        return {
            name: (value + self.noise * generator.standard_normal(value.shape)).astype(value.dtype)
            for name, value in OnnxRuntimeEngine.run(self, inputs).items()
        }


@pytest.mark.parametrize("noise", [0.1, float("nan")])
def test_an_engine_that_misses_is_named_with_its_cosine(bundle, probe, noise, monkeypatch) -> None:
    monkeypatch.setattr(Damaged, "noise", noise)

    def load(graph):
        return (Damaged if graph == "gallery" else OnnxRuntimeEngine)(bundle.graph_file(graph), bundle.spec.precision)

    with pytest.raises(FidelityError, match=r"cosine gallery (0\.|nan).*No plan was kept"):
        hold_to_graphs(bundle, GraphValues(bundle, probe), load)


class DamagedWithShortTexts(OnnxRuntimeEngine):
    """An engine that is right where a text has the full context."""

    def run(self, inputs):
        is_short = "token_ids" in inputs and inputs["token_ids"].shape[1] < 77
        return (Damaged if is_short else OnnxRuntimeEngine).run(self, inputs)


def test_an_engine_that_misses_with_the_texts_of_most_queries_is_named(bundle, probe, monkeypatch) -> None:
    monkeypatch.setattr(DamagedWithShortTexts, "noise", 0.1, raising=False)

    def load(graph):
        return DamagedWithShortTexts(bundle.graph_file(graph), bundle.spec.precision)

    with pytest.raises(FidelityError, match=r"cosine text_encoder 0\.\d+, query_head 0\.\d+, fp32 needs"):
        hold_to_graphs(bundle, GraphValues(bundle, probe), load)


def test_profiles_reach_from_one_query_to_the_bundles_limit(bundle) -> None:
    def profiles(library: Library, max_batch: int) -> list[tuple[int, int, int]]:
        found = batch_profiles(library, max_batch)
        return [(profile.smallest, profile.tuned, profile.largest) for profile in found]

    limit = bundle.spec.max_batch
    assert profiles(Library.TENSORRT, limit) == [(1, 32, 64)]
    assert profiles(Library.RTX, limit) == [(1, 1, 1), (1, 32, 64)]
    assert profiles(Library.RTX, 1) == [(1, 1, 1)]


class InPlaceOfAPlan(OnnxRuntimeEngine):
    """ONNX Runtime where a plan's engine would be: for what happens around TensorRT, and nothing of TensorRT itself."""

    bundle: Bundle

    def __init__(self, path, *, version_compatible):
        super().__init__(self.bundle.graph_file(path.stem), self.bundle.spec.precision)

    def layers(self):
        return json.dumps({"Layers": [GEMM, MHA]})


@pytest.fixture
def around_tensorrt(bundle, tmp_path, monkeypatch) -> Bundle:
    """A copy of a bundle, on a machine where TensorRT's own part is left out."""
    root = tmp_path / "compiled"
    shutil.copytree(bundle.root, root)
    copied = Bundle.open(root)
    here(monkeypatch, version="11.1.0.106", gpu=H100)
    monkeypatch.setattr(InPlaceOfAPlan, "bundle", copied, raising=False)
    monkeypatch.setattr(tensorrt_engine, "TensorRtEngine", InPlaceOfAPlan)
    monkeypatch.setattr(tensorrt_engine, "_build", lambda path, *rest: (path.stem.encode(), rest[-1] + b"timed "))
    return copied


def test_compiling_writes_plans_record_timing_cache_and_repository(around_tensorrt, probe) -> None:
    bundle = around_tensorrt
    written = compile_plans(bundle, probe, CompileOptions(for_triton="26.07", hardware_compatible=True))
    assert read_plans(bundle.root) == written
    assert (written.tensorrt, written.gpu) == ("11.1.0.106", "NVIDIA H100")
    assert written.compute_capabilities == ("9.0",)
    assert (written.hardware_compatible, written.version_compatible) == (True, False)
    for graph in bundle.spec.graphs:
        assert plan_file(bundle, written, graph).read_bytes() == graph.encode()
        assert (written.plans[graph].cosine_min, written.plans[graph].profiles[-1].largest) == (pytest.approx(1), 64)
    assert written.plans["vision_encoder"].attention.fusion is Fusion.PARTLY
    assert (bundle.root / "engines" / "timing.cache").read_bytes() == b"timed " * len(bundle.spec.graphs)
    assert (bundle.root / "triton" / "tensorrt" / "gallery" / "1" / "gallery.plan").is_file()
    compile_plans(bundle, probe, CompileOptions())
    assert (bundle.root / "engines" / "timing.cache").read_bytes() == b"timed " * 2 * len(bundle.spec.graphs)


def test_plans_that_miss_are_not_kept_and_older_ones_stay(around_tensorrt, probe, monkeypatch) -> None:
    bundle = around_tensorrt
    written = compile_plans(bundle, probe, CompileOptions())
    monkeypatch.setattr(InPlaceOfAPlan, "run", lambda self, inputs: Damaged.run(self, inputs))
    monkeypatch.setattr(InPlaceOfAPlan, "noise", 0.1, raising=False)
    with pytest.raises(FidelityError, match="No plan was kept"):
        compile_plans(bundle, probe, CompileOptions(version_compatible=True))
    assert read_plans(bundle.root) == written


def test_a_serving_machine_compiles_without_torch(bundle) -> None:
    script = BLOCK_TORCH.replace(', "cirrus_export", "cirrus_bench"', "") + (
        "from cirrus_client.bundle import Bundle\n"
        "from cirrus_export.arguments import probe_of\n"
        "from cirrus_export.compile import tensorrt_engine\n"
        "from cirrus_export.gate.plan_fidelity import GraphValues\n"
        f"values = GraphValues(Bundle.open({str(bundle.root)!r}), probe_of(None, queries=8, gallery=16))\n"
        "print(values.cases('gallery')[0].outputs['target_embedding'].shape)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "(8, 64)", done.stderr
