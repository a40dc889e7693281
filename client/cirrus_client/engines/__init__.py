"""Engines run graphs: ONNX Runtime, OpenVINO, TensorRT, and plug-ins."""

from cirrus_client.engines.choice import Choice, choose, chosen_engine, open_engine, open_graph, open_served_graph
from cirrus_client.engines.engine import Engine, EngineName
from cirrus_client.engines.kinds import EngineKind, candidates, engine_kind

__all__ = [
    "Choice",
    "Engine",
    "EngineKind",
    "EngineName",
    "candidates",
    "choose",
    "chosen_engine",
    "engine_kind",
    "open_engine",
    "open_graph",
    "open_served_graph",
]
