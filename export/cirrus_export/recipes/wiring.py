"""Graphs wired into an ensemble by the names of their tensors."""

from __future__ import annotations

from cirrus_client.ensemble import EMBEDDING, EnsembleSpec, StepSpec, image_step, text_step
from cirrus_export.graph import Graph


def ensemble(*graphs: Graph) -> EnsembleSpec:
    """Return images and texts, as far as the graphs need them, through the graphs in this order.

    An output feeds every later input of its name; the last graph's one output is the embedding. Where an image is
    given, the text may be absent.
    """
    needed = {spec.name for graph in graphs for spec in graph.inputs}
    inputs = tuple(name for name, tensor in (("image", "pixels"), ("text", "token_ids")) if tensor in needed)
    host_steps = [image_step()] * ("image" in inputs) + [text_step()] * ("text" in inputs)
    return EnsembleSpec(
        inputs=inputs,
        optional=("text",) if inputs == ("image", "text") else (),
        steps=(*host_steps, *(_step(graph, graphs[position + 1 :]) for position, graph in enumerate(graphs))),
    )


def _step(graph: Graph, later: tuple[Graph, ...]) -> StepSpec:
    taken = {spec.name for after in later for spec in after.inputs}
    outputs = {spec.name: spec.name for spec in graph.outputs if spec.name in taken}
    return StepSpec(
        model=graph.name,
        inputs={spec.name: spec.name for spec in graph.inputs},
        outputs=outputs if later else {graph.outputs[0].name: EMBEDDING},
    )
