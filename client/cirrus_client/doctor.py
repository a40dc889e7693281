"""What is installed, which engines and GPUs work, and what is missing."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from cirrus_client.errors import EngineError
from cirrus_client.gpu import query_gpu


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `way_out` says what to do where `ok` is false."""

    what: str
    ok: bool
    found: str
    way_out: str = ""
    required: bool = False


def examine() -> list[Finding]:
    """Look at this machine, without changing anything."""
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
    ]


def _package(name: str, way_out: str, *, required: bool = False) -> Finding:
    try:
        return Finding(name, True, version(name), required=required)
    except PackageNotFoundError:
        return Finding(name, False, "not installed", way_out, required)


def _imported(what: str, look: Callable[[], str], way_out: str, *, required: bool = False) -> Finding:
    try:
        return Finding(what, True, look(), required=required)
    except (ImportError, OSError, RuntimeError) as error:
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

        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return f"{openvino.__version__.split('-')[0]}: {', '.join(capabilities)}"

    return _imported("OpenVINO", look, "pip install openvino: faster on most CPUs; a GPU needs none")


def _faiss() -> Finding:
    def look() -> str:
        import faiss

        gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
        return f"{faiss.__version__}: {gpus} GPUs"

    return _imported("FAISS", look, "pip install 'cirrus-cir[cpu]' or 'cirrus-cir[gpu]'", required=True)


def _tensorrt() -> Finding:
    def look() -> str:
        import tensorrt

        return str(tensorrt.__version__)

    return _imported("TensorRT", look, "pip install 'cirrus-cir[gpu]' on a machine with an NVIDIA GPU")


def _gpu() -> Finding:
    try:
        return Finding(
            "NVIDIA GPU", True, ", ".join(query_gpu("name", "driver_version", "memory.total", "compute_cap"))
        )
    except EngineError as error:
        return Finding("NVIDIA GPU", False, str(error), "everything runs on the CPU")
