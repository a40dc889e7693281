"""Kinds of engine, by name: each says what it runs here, and loads graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.engines.engine import Engine, EngineName
from cirrus_client.errors import MissingPackage, PluginError
from cirrus_client.plugins import find_plugin, known_plugins

ENGINES = {
    EngineName.ONNXRUNTIME.value: "cirrus_client.engines.onnx_runtime:OnnxRuntimeKind",
    EngineName.ONNXRUNTIME_TENSORRT.value: "cirrus_client.engines.onnx_runtime:OnnxRuntimeTensorRtKind",
    EngineName.OPENVINO.value: "cirrus_client.engines.openvino:OpenVinoKind",
    EngineName.TENSORRT.value: "cirrus_client.engines.tensorrt:TensorRtKind",
}
ENGINE_GROUP = "cirrus.engines"
_WHAT = "engine"


class EngineKind(ABC):
    """A kind of engine.

    A new one is a subclass in a file of its own, and a line in `ENGINES` or in the entry-point group `cirrus.engines`.
    """

    @abstractmethod
    def runs(self, precision: Precision) -> bool:
        """Return whether `choose` may take it here for graphs of a precision: they run in hardware, and faithfully."""

    @abstractmethod
    def load(self, path: Path, precision: Precision, *, threads: int | None, bulk: bool) -> Engine:
        """Load an ONNX file. threads, bulk: see `open_engine`. Raises EngineError if it can't run here."""

    def load_graph(self, bundle: Bundle, graph: str, *, threads: int | None, bulk: bool) -> Engine:
        """Load a graph of a bundle: from its ONNX file, unless the kind runs something else."""
        return self.load(bundle.graph_file(graph), bundle.spec.precision, threads=threads, bulk=bulk)


def engine_kind(name: str) -> EngineKind:
    """Return a kind of engine by its name, or by `module:Class`.

    Raises PluginError if there is none, MissingPackage if what it runs on is not installed.
    """
    found = find_plugin(name, what=_WHAT, table=ENGINES, group=ENGINE_GROUP)
    if not (isinstance(found, type) and issubclass(found, EngineKind)):
        raise PluginError(f"engine {name} is not a subclass of cirrus_client.engines.EngineKind", name=name)
    return found()


def candidates(precision: Precision) -> list[str]:
    """Return the names of the engines that run graphs of a precision here, ONNX Runtime, the reference, first."""
    names = []
    for name in known_plugins(what=_WHAT, table=ENGINES, group=ENGINE_GROUP):
        try:
            if engine_kind(name).runs(precision):
                names.append(name)
        except MissingPackage:
            continue
    return names
