"""What can be held of TensorRT without a GPU: the API's names, the records, the table, and the refusals.

The names are looked up in NVIDIA's own binding libraries of both major versions, fetched from the package registry.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cirrus_client.bundle import Precision
from cirrus_client.engines import EngineName, open_engine
from cirrus_client.engines.plans import Plan, Plans, read_plans
from cirrus_client.errors import EngineError, ExportError, FidelityError
from cirrus_export import tensorrt_engine
from cirrus_export.ngc import check_release, ngc_releases
from cirrus_export.tensorrt_engine import attention_fused, check_agreement, compile_plans, layer_names

ROOT = Path(__file__).parents[2]
BINDINGS = ("tensorrt-cu12-bindings==10.16.1.11", "tensorrt-cu13-bindings==11.4.0.106")
SOURCES = ("export/cirrus_export/tensorrt_engine.py", "client/cirrus_client/engines/tensorrt_runtime.py")
HOLDERS = {"trt", "builder", "network", "parser", "config", "profile", "cache", "runtime", "engine", "inspector"}
KEYWORDS = {"ignore_mismatch"}


@pytest.fixture(scope="session", params=BINDINGS)
def bindings(request, tmp_path_factory) -> bytes:
    """The binding library and the Python file beside it, of one major version."""
    folder = tmp_path_factory.mktemp("bindings")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), request.param]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{request.param} can't be fetched from the package registry: {done.stderr}"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(("tensorrt.so", "bindings/__init__.py"))]
        assert len(names) == 2
        return b"".join(wheel.read(name) for name in names)


def used_names() -> set[str]:
    """Every attribute that our code asks of TensorRT's module and objects, and the keywords that it passes."""
    names: set[str] = set(KEYWORDS)
    for source in SOURCES:
        for node in ast.walk(ast.parse((ROOT / source).read_text())):
            if isinstance(node, ast.Attribute):
                holder = node.value
                while isinstance(holder, ast.Call):
                    holder = holder.func
                root = holder
                while isinstance(root, ast.Attribute) and isinstance(root.value, ast.Attribute | ast.Name):
                    if isinstance(root.value, ast.Name) and root.value.id == "self":
                        break
                    root = root.value
                label = root.id if isinstance(root, ast.Name) else getattr(root, "attr", "")
                if label.lstrip("_") in HOLDERS | {"context"}:
                    names.add(node.attr)
    return names


def test_the_names_that_are_used_are_found_in_our_sources() -> None:
    assert {"create_network", "STRONGLY_TYPED", "execute_async_v3", "set_timing_cache", "AMPERE_PLUS"} <= used_names()
    assert len(used_names()) > 30


def test_every_name_is_in_the_bindings_of_both_major_versions(bindings: bytes) -> None:
    missing = sorted(name for name in used_names() if name.encode() not in bindings)
    assert not missing


def plans(**changes) -> Plans:
    facts = {
        "tensorrt": "10.14.1.48",
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "version_compatible": False,
        "hardware_compatible": False,
        "plans": {"gallery": Plan(file="gallery.plan", sha256="0", batch=(1, 32, 64), layers=9, attention_fused=True)},
    }
    return Plans(**facts | changes)


@pytest.mark.parametrize(
    ("made", "here", "runs"),
    [
        ({}, ("10.14.1.48", "9.0"), True),
        ({}, ("10.14.1.99", "9.0"), True),
        ({}, ("10.16.1.11", "9.0"), False),
        ({"version_compatible": True}, ("10.16.1.11", "9.0"), True),
        ({"version_compatible": True}, ("10.13.3.9", "9.0"), False),
        ({"version_compatible": True}, ("11.4.0.106", "9.0"), False),
        ({}, ("10.14.1.48", "8.9"), False),
        ({"hardware_compatible": True}, ("10.14.1.48", "8.9"), True),
        ({"hardware_compatible": True}, ("10.14.1.48", "7.5"), False),
    ],
)
def test_a_plan_is_tied_to_its_tensorrt_and_gpu(made, here, runs) -> None:
    tensorrt, capability = here
    if runs:
        plans(**made).check_here(tensorrt=tensorrt, compute_capability=capability)
    else:
        with pytest.raises(EngineError, match=r"compile them again with `cirrus compile`"):
            plans(**made).check_here(tensorrt=tensorrt, compute_capability=capability)


def test_records_are_read_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has no plans"):
        read_plans(tmp_path)
    (tmp_path / "plans.json").write_text(plans().model_dump_json())
    assert read_plans(tmp_path) == plans()
    (tmp_path / "plans.json").write_text("{}")
    with pytest.raises(EngineError, match=r"plans\.json"):
        read_plans(tmp_path)


def test_the_table_has_its_source_and_refuses_what_would_not_load() -> None:
    table = ngc_releases()
    assert table.source.startswith("https://github.com/triton-inference-server/server")
    check_release("26.07", "10.14.1.48", version_compatible=False)
    check_release("26.07", "10.13.3", version_compatible=True)
    with pytest.raises(ExportError, match=r"26\.07-trtllm-python-py3 has TensorRT 10\.14\.1\.48, here is 11\.4\.0"):
        check_release("26.07", "11.4.0.106", version_compatible=True)
    with pytest.raises(ExportError, match=r"pip install 'tensorrt==10\.14\.1\.\*'"):
        check_release("26.07", "10.13.3.9", version_compatible=False)
    with pytest.raises(ExportError, match=r"does not have it; the nearest are 26\.05, 26\.06, 26\.07"):
        check_release("27.01", "10.14.1.48", version_compatible=False)
    with pytest.raises(ExportError, match="a year and a month"):
        check_release("latest", "10.14.1.48", version_compatible=False)


def test_a_mismatch_is_refused_before_anything_is_built(tmp_path, weights, monkeypatch) -> None:
    from cirrus_export.cli import export_command

    monkeypatch.setattr(tensorrt_engine, "installed_tensorrt", lambda: "11.4.0.106")
    with pytest.raises(ExportError, match="whose plans it would not load"):
        export_command(
            recipe="clip",
            backbone="cirrus-demo",
            pretrained=str(weights.clip),
            out=tmp_path / "bundle",
            for_triton="26.07",
        )
    assert not (tmp_path / "bundle").exists()


def test_without_tensorrt_or_a_gpu_compiling_says_what_is_missing(bundle, monkeypatch) -> None:
    with pytest.raises(EngineError, match=r"pip install 'cirrus-cir\[gpu\]'|no NVIDIA GPU"):
        compile_plans(bundle)
    assert not (bundle.root / "engines").exists()


def test_the_gpu_check_fails_without_a_gpu(bundle, tmp_path, monkeypatch) -> None:
    from cirrus_bench.cli import bench

    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(bench, ["gpu-check", str(bundle.root), "--out", str(tmp_path / "out")])
    assert done.exit_code != 0
    assert "no NVIDIA GPU" in str(done.exception)


def test_layers_are_read_at_both_verbosities_and_fused_attention_is_seen(bundle) -> None:
    brief = '{"Layers": ["patch_embed + reshape", "_gemm_mha_v2_myl0_7"], "Bindings": ["pixels"]}'
    detailed = (
        '{"Layers": [{"Name": "__myl_Fc_0", "LayerType": "gemm", "TacticName": "sm90_xmma_gemm_f16"},'
        ' {"Name": "__myl_MhaSdpa_3", "LayerType": "kgen"}]}'
    )
    unfused = '{"Layers": [{"Name": "__myl_Soft_1", "LayerType": "kgen"}, {"Name": "__myl_Fc_2"}]}'
    vision = bundle.graph_file("vision_encoder")
    assert layer_names(brief) == ["patch_embed + reshape", "_gemm_mha_v2_myl0_7"]
    assert layer_names(detailed)[0] == "__myl_Fc_0 sm90_xmma_gemm_f16"
    assert attention_fused(vision, layer_names(brief)) is True
    assert attention_fused(vision, layer_names(detailed)) is True
    assert attention_fused(vision, layer_names(unfused)) is False
    assert attention_fused(bundle.graph_file("target_head"), []) in (None, False)


def test_a_plan_that_answers_otherwise_is_refused(bundle) -> None:
    original = open_engine(bundle.graph_file("gallery"), Precision.FP32, engine=EngineName.ONNXRUNTIME)
    compiled = open_engine(bundle.graph_file("gallery"), Precision.FP32, engine=EngineName.OPENVINO)
    check_agreement("gallery", original, compiled, bundle)
    honest = compiled.run
    compiled.run = lambda inputs: {name: np.roll(rows, 1, axis=1) for name, rows in honest(inputs).items()}
    with pytest.raises(FidelityError, match="the plan of gallery does not answer as its graph does"):
        check_agreement("gallery", original, compiled, bundle)
