"""Convert each graph from torch to ONNX once, and keep it for later runs: conversions are a quarter of a run's time.

Many tests export the same backbone with other heads. What is kept lies in pytest's cache (`pytest --cache-clear`
empties it), and is used as long as nothing that determines it has changed: see `kept_conversions` and `identity`.

torch.onnx parses its table of operators anew for each graph, a quarter of what a small one takes: here it is kept. A
tenth is Python's search for garbage, which is left out.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

import cirrus_export
from cirrus_client.bundle import GraphSpec
from cirrus_export import pipeline
from cirrus_export.compile import onnx_graph
from cirrus_export.graph import Graph

_CONVERTERS = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy")


def kept_conversions(cache_folder: Path) -> Path:
    """Return the folder of conversions by these packages and this `cirrus_export`. Those of others are removed."""
    kept = cache_folder / code_hash(_CONVERTERS, cirrus_export)[:24]
    kept.mkdir(exist_ok=True)
    for other in cache_folder.iterdir():
        if other != kept:
            shutil.rmtree(other, ignore_errors=True)
    return kept


def code_hash(distributions: Sequence[str], *packages: ModuleType) -> str:
    """Return a hash of the versions of distributions, and of the sources of packages of ours."""
    digest = hashlib.sha256(repr([(name, version(name)) for name in distributions]).encode())
    for package in packages:
        assert package.__file__ is not None
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def shared_conversions(once: Callable[[str, Callable[[Path], object]], Path]) -> Iterator[None]:
    """Let `export` take a graph that was converted before. once: makes a named folder if it is not there."""
    convert = pipeline.write_onnx

    def shared(graph: Graph, path: Path) -> GraphSpec:
        def make(folder: Path) -> None:
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            gc.disable()
            try:
                spec = convert(graph, unfinished / "graphs" / f"{graph.name}.onnx")
            finally:
                gc.enable()
            (unfinished / "spec.json").write_text(spec.model_dump_json())
            unfinished.rename(folder)

        graph.module.eval()  # as `convert` does, so that a graph that is kept has the same identity before and after
        made = once(f"onnx-{onnx_graph._EXTERNAL_DATA_BYTES}-{identity(graph)}", make)
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (made / "graphs").iterdir():
            shutil.copyfile(file, path.parent / file.name)
        return GraphSpec.model_validate_json((made / "spec.json").read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_onnx", shared)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


def identity(graph: Graph) -> str:
    """Return a hash of all that a graph computes with: its modules' code, settings and tensors, and its ends."""
    digest = hashlib.sha256(graph.name.encode())
    digest.update(json.dumps([spec.model_dump(mode="json") for spec in (*graph.inputs, *graph.outputs)]).encode())
    for name, module in graph.module.named_modules():
        settings = sorted((key, _described(value)) for key, value in vars(module).items() if key[0] != "_")
        digest.update(f"{name} {type(module).__qualname__} {_source(type(module))} {settings}".encode())
    for name, tensor in (*graph.module.named_parameters(), *graph.module.named_buffers()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()))
    return digest.hexdigest()[:24]


@cache
def _source(module_type: type) -> str:
    """Return a hash of the file that defines a class."""
    file = inspect.getsourcefile(module_type)
    assert file is not None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(np.ascontiguousarray(value.detach().cpu().numpy())).hexdigest()
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)
