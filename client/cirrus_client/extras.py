"""Optional packages: what to install for each, and the error where one is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from cirrus_client.errors import MissingPackage

_BY_EXTRA = {
    "search": ("faiss",),
    "milvus": ("pymilvus",),
    "milvus-lite": ("milvus_lite",),
    "sources": ("fsspec", "s3fs"),
    "heif": ("pillow_heif",),
    "ray": ("ray",),
    "cpu": ("onnxruntime", "openvino"),
    "gpu": ("tensorrt", "cuda"),
    "rtx": ("tensorrt_rtx_bindings",),
    "serve": ("pytriton",),
    "service": ("fastapi", "uvicorn", "starlette", "python_multipart", "prometheus_client", "httpx2"),
    "otel": ("opentelemetry",),
    "mcp": ("mcp",),
    "export": ("torch", "open_clip", "transformers", "safetensors", "onnx", "onnxscript", "modelopt", "peft"),
    "bench": ("matplotlib", "psutil"),
}

REQUIREMENTS = {package: f"cirrus-cir[{extra}]" for extra, packages in _BY_EXTRA.items() for package in packages}
"""Import name of a package -> what `pip install` takes to bring it: the smallest extra, or another distribution."""

REQUIREMENTS |= dict.fromkeys(("cirrus_demo", "skia"), "cirrus-cir-demo")
_ON_GPU = {"onnxruntime", "faiss"}


def need(package: str, job: str) -> ModuleType:
    """Import an optional package. job: what needs it, for the message, like "search".

    Raises MissingPackage if it is not installed or can't be imported.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise missing_package(error, job) or error from None


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, by its name on PyPI, None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and seldom needed

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def missing_package(error: ImportError, job: str) -> MissingPackage | None:
    """Return a failed import as a MissingPackage, or None if the package is none of these."""
    package = (error.name or "").split(".")[0]
    if package not in REQUIREMENTS:
        return None
    requirement = REQUIREMENTS[package]
    on_gpu = "; with an NVIDIA GPU: 'cirrus-cir[gpu]'" if package in _ON_GPU else ""
    absent = isinstance(error, ModuleNotFoundError) and error.name == package
    broken = "" if absent else f", which can't be imported ({error})"
    message = f"{job} needs {package}{broken}: pip install '{requirement}'{on_gpu}"
    return MissingPackage(message, package=package, requirement=requirement)
