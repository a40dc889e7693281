"""Optional packages: the extra of cirrus-cir that installs each, and the error where one is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from cirrus_client.errors import MissingPackage

EXTRAS = {
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "faiss": "search",
    "tensorrt": "gpu",
    "cuda": "gpu",
    "pytriton": "serve",
    "torch": "export",
    "open_clip": "export",
    "transformers": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnxscript": "export",
    "modelopt": "export",
    "skia": "demo",
    "matplotlib": "bench",
    "psutil": "bench",
}
"""Import name of a package -> the smallest extra that installs it."""

_ON_GPU = {"onnxruntime", "faiss"}


def need(package: str, job: str) -> ModuleType:
    """Import a package that an extra installs. job: what needs it, for the message, like "search".

    Raises MissingPackage if it is not installed or can't be imported.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise missing_package(error, job) or error from None


def missing_package(error: ImportError, job: str) -> MissingPackage | None:
    """Return a failed import as a MissingPackage, or None if no extra installs the package."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRAS:
        return None
    extra = EXTRAS[package]
    on_gpu = "; with an NVIDIA GPU: 'cirrus-cir[gpu]'" if package in _ON_GPU else ""
    broken = "" if isinstance(error, ModuleNotFoundError) else f", which can't be imported ({error})"
    message = f"{job} needs {package}{broken}: pip install 'cirrus-cir[{extra}]'{on_gpu}"
    return MissingPackage(message, package=package, extra=extra)
