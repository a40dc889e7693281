"""What is installed, which engines and GPUs work, and what is missing."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from cirrus_client.bundle import Bundle
from cirrus_client.engines.nvidia import load_tensorrt, this_gpu
from cirrus_client.errors import BundleError, EngineError
from cirrus_client.plans import plan_file, read_plans, refusal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `way_out` says what to do where `ok` is false."""

    what: str
    ok: bool
    found: str
    way_out: str = ""
    required: bool = False


def examine(bundle: Bundle | None = None) -> list[Finding]:
    """Look at this machine, and whether it can run a bundle's TensorRT plans, without changing anything."""
    plans = [] if bundle is None else [_plans(bundle)]
    return [
        Finding("Python", True, platform.python_version(), required=True),
        _onnxruntime(),
        _openvino(),
        _faiss(),
        _package("tritonclient", "pip install 'cirrus-cir'", required=True),
        _package("nvidia-pytriton", "pip install 'cirrus-cir[serve]' for `cirrus serve`; NGC's container needs none"),
        _package("torch", "pip install 'cirrus-cir[export]' for `cirrus export`; the client needs none"),
        _package("open_clip_torch", "pip install 'cirrus-cir[export]' for `cirrus export`"),
        _tensorrt(),
        _gpu(),
        *plans,
    ]


def _package(name: str, way_out: str, *, required: bool = False) -> Finding:
    try:
        return Finding(name, True, version(name), required=required)
    except PackageNotFoundError:
        return Finding(name, False, "not installed", way_out, required)


def _imported(what: str, look: Callable[[], str], way_out: str, *, required: bool = False) -> Finding:
    try:
        return Finding(what, True, look(), required=required)
    except (ImportError, OSError, RuntimeError, EngineError) as error:
        return Finding(what, False, str(error).splitlines()[0], way_out, required)


def _onnxruntime() -> Finding:
    def look() -> str:
        import onnxruntime

        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
        return f"{onnxruntime.__version__}: {providers}"

    return _imported("ONNX Runtime", look, "pip install 'cirrus-cir[cpu]' or 'cirrus-cir[gpu]'", required=True)


def _openvino() -> Finding:
    def look() -> str:
        import openvino

        from cirrus_client.engines.openvino import capabilities

        return f"{openvino.__version__.split('-')[0]}: {', '.join(capabilities())}"

    return _imported("OpenVINO", look, "pip install openvino: faster on most CPUs; a GPU needs none")


def _faiss() -> Finding:
    def look() -> str:
        import faiss

        gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
        return f"{faiss.__version__}: {gpus} GPUs"

    return _imported("FAISS", look, "pip install 'cirrus-cir[cpu]' or 'cirrus-cir[gpu]'", required=True)


def _tensorrt() -> Finding:
    def look() -> str:
        return str(load_tensorrt().__version__)

    return _imported("TensorRT", look, "pip install 'cirrus-cir[gpu]' on a machine with an NVIDIA GPU")


def _plans(bundle: Bundle) -> Finding:
    what, again = f"plans of {bundle.spec.name}", f"on this machine: cirrus compile {bundle.root}"
    try:
        record = read_plans(bundle)
        for graph in bundle.spec.graphs:
            plan_file(bundle, record, graph)
        reason = refusal(record, load_tensorrt().__version__, this_gpu())
    except (BundleError, EngineError) as error:
        return Finding(what, False, str(error), again)
    if reason is not None:
        return Finding(what, False, reason, again)
    return Finding(what, True, f"TensorRT {record.tensorrt}, {record.gpu}: they run here")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("NVIDIA GPU", False, "no nvidia-smi", "everything runs on the CPU")
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if answer.returncode != 0:
        return Finding("NVIDIA GPU", False, (answer.stderr or answer.stdout).strip(), "check the NVIDIA driver")
    return Finding("NVIDIA GPU", True, "; ".join(answer.stdout.strip().splitlines()))
