"""Every name of TensorRT's and CUDA's Python packages that Cirrus uses, and how the tests read the real packages.

The bindings come as wheels of 1.3 MB without TensorRT's libraries. Python imports them all the same beside
libraries that have the nine functions' names and nothing in them: pybind11 then tells every class and signature.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import lief
import numpy as np

from tests.registry import need_registry

ROOT = Path(__file__).parents[2]
MODULES = (
    ROOT / "client/cirrus_client/engines/nvidia.py",
    ROOT / "client/cirrus_client/engines/cuda_memory.py",
    ROOT / "client/cirrus_client/engines/tensorrt.py",
    ROOT / "export/cirrus_export/compile/plan_builder.py",
    ROOT / "export/cirrus_export/compile/tensorrt_engine.py",
)
MODULES_OF_RTX = (
    ROOT / "client/cirrus_client/engines/tensorrt_rtx.py",
    ROOT / "export/cirrus_export/compile/ahead_of_time.py",
)
BINDINGS = {
    "the oldest 10": "tensorrt-cu12-bindings==10.0.1",
    "the newest 10": "tensorrt-cu13-bindings==10.16.1.11",
    "11": "tensorrt-cu13-bindings==11.4.0.106",
}
CUDA = ("cuda-bindings==13.5.0", "cuda-pathfinder==1.9.0")

# What the code's variables hold.
OBJECTS = {
    "builder": "Builder",
    "parser": "OnnxParser",
    "refusal": "ParserError",
    "config": "IBuilderConfig",
    "config.get_timing_cache()": "ITimingCache",
    "profile": "IOptimizationProfile",
    "self.builder": "Builder",
    "runtime_config": "IRuntimeConfig",
    "self._cache": "IRuntimeCache",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}

# Arguments that the code gives, by TensorRT's names and in its order; None for what is no method.
USED: dict[str, tuple[str, ...] | None] = {
    "Builder": ("logger",),
    "Builder.build_serialized_network": ("network", "config"),
    "Builder.create_builder_config": (),
    "Builder.create_network": ("flags",),
    "Builder.create_optimization_profile": (),
    "BuilderFlag.TF32": None,
    "BuilderFlag.VERSION_COMPATIBLE": None,
    "EngineInspector.get_engine_information": ("format",),
    "HardwareCompatibilityLevel.AMPERE_PLUS": None,
    "IBuilderConfig.add_optimization_profile": ("profile",),
    "IBuilderConfig.clear_flag": ("flag",),
    "IBuilderConfig.create_timing_cache": ("serialized_timing_cache",),
    "IBuilderConfig.get_timing_cache": (),
    "IBuilderConfig.hardware_compatibility_level": None,
    "IBuilderConfig.profiling_verbosity": None,
    "IBuilderConfig.set_flag": ("flag",),
    "IBuilderConfig.set_timing_cache": ("cache", "ignore_mismatch"),
    "ICudaEngine.create_engine_inspector": (),
    "ICudaEngine.create_execution_context": (),
    "ICudaEngine.get_tensor_dtype": ("name",),
    "ICudaEngine.get_tensor_mode": ("name",),
    "ICudaEngine.get_tensor_name": ("index",),
    "ICudaEngine.get_tensor_profile_shape": ("name", "profile_index"),
    "ICudaEngine.get_tensor_shape": ("name",),
    "ICudaEngine.num_io_tensors": None,
    "ICudaEngine.num_optimization_profiles": None,
    "IExecutionContext.execute_async_v3": ("stream_handle",),
    "IExecutionContext.get_tensor_shape": ("name",),
    "IExecutionContext.set_optimization_profile_async": ("profile_index", "stream_handle"),
    "IExecutionContext.set_input_shape": ("name", "shape"),
    "IExecutionContext.set_tensor_address": ("name", "memory"),
    "ILogger": None,
    "ILogger.Severity.ERROR": None,
    "ILogger.Severity.INTERNAL_ERROR": None,
    "ILogger.Severity.WARNING": None,
    "ILogger.__init__": (),
    "IOptimizationProfile.set_shape": ("input", "min", "opt", "max"),
    "ITimingCache.serialize": (),
    "LayerInformationFormat.JSON": None,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": None,
    "OnnxParser": ("network", "logger"),
    "OnnxParser.get_error": ("index",),
    "OnnxParser.num_errors": None,
    "OnnxParser.parse": ("model", "path"),
    "ParserError.desc": (),
    "ParserError.node_name": (),
    "ParserError.node_operator": (),
    "ProfilingVerbosity.DETAILED": None,
    "Runtime": ("logger",),
    "Runtime.deserialize_cuda_engine": ("serialized_engine",),
    "Runtime.engine_host_code_allowed": None,
    "TensorIOMode.INPUT": None,
    "__version__": None,
    "nptype": None,
}

# What TensorRT for RTX has beside these.
USED_OF_RTX: dict[str, tuple[str, ...] | None] = {
    "ComputeCapability": None,
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": None,
    "IBuilderConfig.num_compute_capabilities": None,
    "IBuilderConfig.set_compute_capability": ("compute_capability", "index"),
    "ICudaEngine.create_execution_context": ("runtime_config",),
    "ICudaEngine.create_runtime_config": (),
    "IRuntimeCache.deserialize": ("blob",),
    "IRuntimeCache.serialize": (),
    "IRuntimeConfig.create_runtime_cache": (),
    "IRuntimeConfig.cuda_graph_strategy": None,
    "IRuntimeConfig.set_runtime_cache": ("cache",),
    "__version__": None,
}

USED_OF_CUDA = {
    "cudaFree": ("devPtr",),
    "cudaFreeHost": ("ptr",),
    "cudaGetDevice": (),
    "cudaGetDeviceProperties": ("device",),
    "cudaMalloc": ("size",),
    "cudaMallocHost": ("size",),
    "cudaMemcpyAsync": ("dst", "src", "count", "kind", "stream"),
    "cudaMemcpyKind.cudaMemcpyDeviceToHost": None,
    "cudaMemcpyKind.cudaMemcpyHostToDevice": None,
    "cudaStreamCreate": (),
    "cudaStreamDestroy": ("stream",),
    "cudaStreamSynchronize": ("stream",),
}

_NEEDED_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_ASK = """
import importlib, json, sys
package, names = sys.argv[1], json.loads(sys.argv[2])
module = importlib.import_module(package)
answers = {}
for name in names:
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    described = found.__init__ if isinstance(found, type) else found
    answers[name] = None if found is None else described.__doc__ or ""
print(json.dumps(answers))
"""


def names_in_the_code(modules: tuple[Path, ...] = MODULES) -> tuple[set[str], set[str]]:
    """TensorRT's names and CUDA's, from the modules' syntax trees."""
    tensorrt, cuda = set(), set()
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            for root in ("tensorrt", "load_tensorrt()", "load_library(cls.library)", "self._tensorrt"):
                if owner == root or owner.startswith(f"{root}."):
                    tensorrt.add(f"{owner}.{node.attr}".removeprefix(f"{root}."))
            if owner in OBJECTS:
                tensorrt.add(f"{OBJECTS[owner]}.{node.attr}")
            if re.match("cuda[A-Z]", node.attr):
                cuda.add(f"{owner}.{node.attr}".removeprefix("self._cuda.").removeprefix("cuda."))
    return _leaves(tensorrt), _leaves(cuda)


def unpack(requirements: tuple[str, ...], cache: Path) -> Path:
    """Download wheels with pip and return the folder where they are unpacked; the cache keeps it for the next run.

    The running test is skipped if they are not in the cache and there is no package registry.
    """
    folder = cache / "-".join(requirements).replace("==", "-")
    if not folder.is_dir():
        need_registry()
        wheels = cache / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(wheels), *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        unpacked = folder.with_suffix(".part")
        for requirement in requirements:
            name = requirement.replace("-", "_").replace("==", "-")
            (wheel,) = wheels.glob(f"{name}-*.whl")
            zipfile.ZipFile(wheel).extractall(unpacked)
        unpacked.rename(folder)
    return folder


def bindings(requirement: str, cache: Path, destination: Path) -> Path:
    """Return a folder from which TensorRT's real bindings can be imported, though they can compute nothing."""
    shutil.copytree(unpack((requirement,), cache), destination)
    major = requirement.split("==")[1].split(".")[0]
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        _empty_library(destination / "tensorrt_bindings" / f"lib{library}.so.{major}")
    return destination


def accepts(docstring: str, arguments: tuple[str, ...]) -> bool:
    """Whether one of a pybind11 docstring's overloads takes these arguments, and needs no other."""
    for signature in re.findall(r"^(?:\d+\. )?\w+\(self: [^,)]+(?:, (.*))?\) ->", docstring, flags=re.MULTILINE):
        taken = re.findall(r"(?:^|, )(\w+): ", signature)
        optional = re.findall(r"(?:^|, )(\w+): [^,]*? = ", signature)
        if tuple(taken[: len(arguments)]) == arguments and set(taken[len(arguments) :]) <= set(optional):
            return True
    return False


def ask(folder: Path | None, package: str, names: list[str]) -> dict[str, str | None]:
    """Docstrings of a package's names, read in a process of its own; None for a name that is not there."""
    command = [sys.executable, "-c", _ASK, package, json.dumps(names)]
    environment = os.environ | ({} if folder is None else {"PYTHONPATH": str(folder)})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _empty_library(path: Path) -> None:
    """Write a small library of numpy's with the function names that the bindings' loader looks for."""
    small = min(Path(np.__file__).parent.rglob("*.so"), key=lambda library: library.stat().st_size)
    library = lief.parse(str(small))
    for name in _NEEDED_FUNCTIONS:
        library.add_exported_function(library.entrypoint, name)
    library.write(str(path))


def _leaves(names: set[str]) -> set[str]:
    """Without what is only a step on the way to another name; classes that are called are kept."""
    called = {name for name in names if name in ("Builder", "OnnxParser", "Runtime", "ILogger")}
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)} | called
