"""Engines: what runs a graph."""

from cirrus_client.engines.choice import Choice, candidates, choose, open_engine, open_graph
from cirrus_client.engines.engine import Engine, EngineName

__all__ = ["Choice", "Engine", "EngineName", "candidates", "choose", "open_engine", "open_graph"]
