"""Look up kinds of engine by name. A kind says which precisions it runs on this machine, and loads graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.engines.engine import Engine, EngineName
from cirrus_client.errors import MissingPackage
from cirrus_client.plugins import find_subclass, known_plugins
from cirrus_client.telemetry import switch_off

ENGINES = {
    EngineName.ONNXRUNTIME.value: "cirrus_client.engines.onnx_runtime:OnnxRuntimeKind",
    EngineName.ONNXRUNTIME_TENSORRT.value: "cirrus_client.engines.onnx_runtime:OnnxRuntimeTensorRtKind",
    EngineName.OPENVINO.value: "cirrus_client.engines.openvino:OpenVinoKind",
    EngineName.TENSORRT.value: "cirrus_client.engines.tensorrt:TensorRtKind",
    EngineName.TENSORRT_RTX.value: "cirrus_client.engines.tensorrt_rtx:TensorRtRtxKind",
}
ENGINE_GROUP = "cirrus.engines"
_WHAT = "engine"


class EngineKind(ABC):
    """Base class of kinds of engine.

    To add one, write a subclass in a file of its own, and add a line to `ENGINES` or an entry point to the group
    `cirrus.engines`.
    """

    @abstractmethod
    def runs(self, precision: Precision) -> bool:
        """Return whether `choose` may pick this engine for a precision: the hardware here runs it accurately."""

    @abstractmethod
    def load(self, path: Path, precision: Precision, *, threads: int | None, bulk: bool) -> Engine:
        """Load an ONNX file. threads, bulk: see `open_engine`. Raises EngineError if it can't run on this machine."""

    def load_graph(self, bundle: Bundle, graph: str, *, threads: int | None, bulk: bool) -> Engine:
        """Load a graph of a bundle from its ONNX file. A kind that runs other files, like plans, overrides this."""
        return self.load(bundle.graph_file(graph), bundle.spec.precision, threads=threads, bulk=bulk)


def engine_kind(name: str) -> EngineKind:
    """Return a kind of engine by its name or as `module:Class`.

    Raises PluginError if the name is unknown, MissingPackage if its package is not installed.
    """
    switch_off()
    return find_subclass(EngineKind, name, what=_WHAT, table=ENGINES, group=ENGINE_GROUP)()


def candidates(precision: Precision) -> list[str]:
    """Return the names of engines that run a precision on this machine. ONNX Runtime, the reference, comes first."""
    names = []
    for name, reference in known_plugins(what=_WHAT, table=ENGINES, group=ENGINE_GROUP).items():
        try:
            if engine_kind(reference).runs(precision):
                names.append(name)
        except MissingPackage:
            continue
    return names
