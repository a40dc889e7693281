"""What is installed, which engines and GPUs work, and what is missing.

A package is imported here only when it is looked at, so that a broken one is a finding and not an error.
"""

from __future__ import annotations

import contextlib
import io
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cirrus_client.bundle import Bundle
    from cirrus_client.plans import Library

_LIGHT_CLIENT = {
    "numpy": "numpy",
    "PIL": "pillow",
    "cykooz_resizer": "cykooz-resizer",
    "pydantic": "pydantic",
    "pyarrow.parquet": "pyarrow",
    "tokenizers": "tokenizers",
    "ftfy": "ftfy",
    "aiohttp": "aiohttp",
    "tritonclient.grpc": "tritonclient",
}
"""Import name of what every installation has -> its name on PyPI."""

_RIVALS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "faiss": ("faiss-cpu", "faiss-gpu")}
"""Import name -> distributions that both install it, of which there may be only one."""

_EXPORT = ("torch", "open_clip_torch", "transformers", "safetensors", "onnx", "onnxscript")
_NONE = "none"
_RTX = "for RTX cards, L4, L40S and A10, and to compile for them: pip install 'cirrus-cir[rtx]' (Python 3.11, Linux)"
_ON_GPU = "on a machine with an NVIDIA GPU: pip install 'cirrus-cir[gpu]'"

_SERVE = "pip install 'cirrus-cir[serve]'" if sys.version_info < (3, 13) else "use Python 3.11 or 3.12"


class State(StrEnum):
    """ABSENT: an optional part can't be used here. BROKEN: a part that is installed, or always needed, fails."""

    OK = "ok"
    ABSENT = "--"
    BROKEN = "!!"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. way_out: what to do if it is absent or broken."""

    what: str
    state: State
    found: str
    way_out: str = ""


def examine(bundle: Bundle | None = None) -> list[Finding]:
    """Look at this installation and machine, and whether it can run a bundle's TensorRT plans. Change nothing."""
    return [
        Finding("Python", State.OK, platform.python_version()),
        *_light_client(),
        _package("ONNX Runtime", "onnxruntime", _providers, "pip install 'cirrus-cir[cpu]', or 'cirrus-cir[gpu]'"),
        _package("OpenVINO", "openvino", _openvino, "faster on most CPUs: pip install 'cirrus-cir[cpu]'"),
        _package("FAISS", "faiss", _faiss, "pip install 'cirrus-cir[search]', or 'cirrus-cir[gpu]'"),
        _package("Triton server", "pytriton", _triton, f"for `cirrus serve`: {_SERVE}"),
        _export(),
        _package("TensorRT", "tensorrt", _tensorrt, _ON_GPU),
        _package("TensorRT for RTX", "tensorrt_rtx_bindings", _tensorrt_rtx, _RTX),
        _gpu(),
        *([] if bundle is None else _plans(bundle)),
    ]


def _light_client() -> list[Finding]:
    """One finding if all of its packages work, else one for each that does not."""
    broken = []
    for module, distribution in _LIGHT_CLIENT.items():
        error = _import_error(module)
        if error is not None:
            broken.append(Finding(distribution, State.BROKEN, _first_line(error), _repair(distribution, error)))
    versions = ", ".join(f"{name} {_version(name)}" for name in ("cirrus-cir", "numpy", "pyarrow", "tritonclient"))
    return broken or [Finding("light client", State.OK, versions)]


def _package(what: str, module: str, look: Callable[[], str], way_out: str) -> Finding:
    """Look at an optional package. look: returns what to say of it. It may raise anything."""
    if not _is_installed(module):
        return Finding(what, State.ABSENT, "not installed", way_out)
    rivals = [name for name in _RIVALS.get(module, ()) if _version(name) != _NONE]
    if len(rivals) > 1:
        found = f"{' and '.join(rivals)} are both installed and overwrite each other"
        return Finding(what, State.BROKEN, found, f"pip uninstall {' '.join(rivals)}; then {way_out}")
    try:
        return Finding(what, State.OK, look())
    except Exception as error:  # whatever a broken package raises
        return Finding(what, State.BROKEN, _first_line(error), way_out)


def _providers() -> str:
    runtime = _quietly("onnxruntime")
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers())
    return f"{runtime.__version__}: {names}"


def _openvino() -> str:
    from cirrus_client.engines.openvino import capabilities

    return f"{_quietly('openvino').__version__.split('-')[0]}: {', '.join(capabilities())}"


def _faiss() -> str:
    faiss = _quietly("faiss")
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{faiss.__version__}: {gpus} GPUs"


def _triton() -> str:
    from cirrus_client.triton.server import find_server

    find_server()
    return f"nvidia-pytriton {_version('nvidia-pytriton')}"


def _tensorrt() -> str:
    from cirrus_client.engines import nvidia

    return str(nvidia.load_tensorrt().__version__)


def _tensorrt_rtx() -> str:
    from cirrus_client.engines import nvidia

    return f"{nvidia.load_tensorrt_rtx().__version__}: compiles with or without a GPU"


def _export() -> Finding:
    """By name alone: importing them takes seconds."""
    missing = [name for name in _EXPORT if _version(name) == _NONE]
    if missing:
        way_out = "for `cirrus export`: pip install 'cirrus-cir[export]'"
        return Finding("export", State.ABSENT, f"not installed: {', '.join(missing)}", way_out)
    return Finding("export", State.OK, ", ".join(f"{name} {_version(name)}" for name in ("torch", "onnx")))


def _plans(bundle: Bundle) -> list[Finding]:
    """One finding for each library that has compiled plans of the bundle, or one that says that there are none."""
    from cirrus_client.plans import Library, compile_again, has_plans

    found = [library for library in Library if has_plans(bundle.root, library)]
    if not found:
        plans, way_out = f"TensorRT plans of {bundle.spec.name}", compile_again(bundle.root, Library.TENSORRT)
        return [Finding(plans, State.ABSENT, "not compiled", way_out)]
    return [_plans_of(bundle, library) for library in found]


def _plans_of(bundle: Bundle, library: Library) -> Finding:
    from cirrus_client.engines import nvidia
    from cirrus_client.errors import BundleError, EngineError
    from cirrus_client.plans import compile_again, plan_file, read_plans, refusal

    what, again = f"{library.label} plans of {bundle.spec.name}", compile_again(bundle.root, library)
    try:
        record = read_plans(bundle.root, library)
        for graph in bundle.spec.graphs:
            plan_file(bundle, record, graph)
    except BundleError as error:
        return Finding(what, State.ABSENT, str(error), again)
    try:
        reason = refusal(record, nvidia.load_library(library).__version__, nvidia.this_gpu())
    except EngineError as error:
        reason = f"{record.origin}; {error}"
    if reason is not None:
        return Finding(what, State.ABSENT, reason, again)
    return Finding(what, State.OK, f"{record.origin}: they can be loaded here")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("NVIDIA GPU", State.ABSENT, "no nvidia-smi", "everything runs on the CPU")
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("NVIDIA GPU", State.BROKEN, _first_line(error), "check the NVIDIA driver")
    if answer.returncode != 0:
        return Finding("NVIDIA GPU", State.BROKEN, (answer.stderr or answer.stdout).strip(), "check the NVIDIA driver")
    return Finding("NVIDIA GPU", State.OK, "; ".join(answer.stdout.strip().splitlines()))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def _import_error(module: str) -> Exception | None:
    try:
        _quietly(module)
    except Exception as error:  # whatever a broken package raises
        return error
    return None


def _repair(distribution: str, error: Exception) -> str:
    is_missing = isinstance(error, ModuleNotFoundError)
    if distribution == "pyarrow" and not is_missing and _version("numpy").startswith("1."):
        return "pyarrow 26 needs NumPy 2: pip install 'pyarrow<26'"
    return "pip install --force-reinstall cirrus-cir"


def _quietly(module: str) -> Any:
    """Import a module without what some print to stderr when NumPy has another version than they were built for."""
    with contextlib.redirect_stderr(io.StringIO()):
        return import_module(module)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return _NONE


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
