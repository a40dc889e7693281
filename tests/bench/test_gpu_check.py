"""The GPU check as far as it can be tested without a GPU: what it reports, and that no failure is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cirrus_bench import gpu_check
from cirrus_bench.gpu_check import Check, GpuReport, Outcome
from cirrus_bench.measure import this_machine
from cirrus_client.engines.onnx_runtime import TENSORRT_PROVIDERS, OnnxRuntimeEngine
from cirrus_client.errors import EngineError


def report(*checks: Check) -> GpuReport:
    return GpuReport(gpu="NVIDIA H100", compute_capability="9.0", machine=this_machine(), checks=checks)


def check(outcome: Outcome, found: str = "as expected") -> Check:
    return Check(
        part="TensorRT run",
        bundle="demo-fp16",
        outcome=outcome,
        found=found,
        images_per_s=12_345.6,
        highest_images_per_s=61_728.0,
    )


@pytest.mark.slow
def test_without_a_gpu_the_command_exits_1_and_says_why(tmp_path) -> None:
    script = (
        "import sys, typer\n"
        "from cirrus_bench.cli import gpu_check_command\n"
        "from cirrus_client.errors import CirrusError\n"
        f"sys.argv = ['gpu-check', '--out', {str(tmp_path / 'out')!r}, '--work', {str(tmp_path / 'work')!r}]\n"
        "try: typer.run(gpu_check_command)\n"
        "except CirrusError as error: sys.exit(f'{type(error).__name__}: {error}')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "EngineError: gpu-check needs a machine with an NVIDIA GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_check_is_in_the_report_and_one_failure_fails_it(tmp_path) -> None:
    failed = report(check(Outcome.PASS), check(Outcome.FAIL, "a | b"), check(Outcome.NOT_INSTALLED, "not installed"))
    assert not failed.passed
    assert report(check(Outcome.PASS), check(Outcome.NOT_INSTALLED)).passed
    failed.write(tmp_path)
    page = (tmp_path / "gpu_check.md").read_text()
    assert "**Something failed.**" in page
    assert "| TensorRT run | demo-fp16 | FAIL | a / b | 12,346 | 20% |" in page
    assert json.loads((tmp_path / "gpu_check.json").read_text())["checks"][2]["outcome"] == "not installed"
    assert "Nothing failed." in report().markdown()


def test_a_check_that_fails_does_not_stop_the_next() -> None:
    def raises(error: Exception):
        def run():
            raise error

        return run

    checks = gpu_check._Checks()
    checks.run("a", "-", raises(EngineError("wrong\nnumbers")))
    checks.run("b", "-", raises(RuntimeError("CUDA error")))
    checks.run("c", "-", raises(gpu_check._NotInstalled("not installed")))
    checks.run("d", "-", lambda: gpu_check._Finding("right", 3.0))
    assert [(done.outcome, done.found) for done in checks.done] == [
        (Outcome.FAIL, "wrong numbers"),
        (Outcome.FAIL, "RuntimeError: CUDA error"),
        (Outcome.NOT_INSTALLED, "not installed"),
        (Outcome.PASS, "right"),
    ]


def test_parts_that_are_not_installed_say_what_to_install(bundle, probe, monkeypatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    monkeypatch.setattr("cirrus_client.index.faiss_index._gpu_present", lambda: False)
    parts = (
        (lambda: gpu_check._onnx_runtime(bundle, probe, TENSORRT_PROVIDERS), "no TensorrtExecutionProvider"),
        (lambda: gpu_check._onnx_runtime(bundle, probe, TENSORRT_PROVIDERS[1:]), "onnxruntime-gpu"),
        (gpu_check._faiss, "faiss-gpu"),
        (lambda: gpu_check._nvjpeg(probe.gallery[0]), "nvidia-nvimgcodec"),
    )
    for part, package in parts:
        with pytest.raises(gpu_check._NotInstalled, match=package):
            part()


def test_images_per_second_are_measured_on_any_engine(bundle, monkeypatch) -> None:
    monkeypatch.setattr(gpu_check, "_REPEATS", 1)
    assert (
        gpu_check._images_per_s(
            bundle, lambda graph: OnnxRuntimeEngine(bundle.graph_file(graph), bundle.spec.precision)
        )
        > 1
    )
