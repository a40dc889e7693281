"""Wire graphs into an ensemble by the names of their tensors."""

from __future__ import annotations

from cirrus_client.ensemble import EMBEDDING, EnsembleSpec, StepSpec, image_step, text_step
from cirrus_client.names import TensorName
from cirrus_export.graph import Graph


def ensemble(*graphs: Graph) -> EnsembleSpec:
    """Return the ensemble that runs graphs in this order, with the host's steps for images and texts before them.

    An output feeds every later input of its name, also one that the host could make. The last graph has one output, the
    embedding. In an ensemble of image and text the text may be absent.
    """
    made = {spec.name for graph in graphs for spec in graph.outputs}
    needed = {spec.name for graph in graphs for spec in graph.inputs} - made
    host_steps = [
        step
        for tensor, step in ((TensorName.PIXELS, image_step()), (TensorName.TOKEN_IDS, text_step()))
        if tensor in needed
    ]
    inputs = tuple(name for step in host_steps for name in step.inputs.values())
    return EnsembleSpec(
        inputs=inputs,
        optional=(TensorName.TEXT,) if inputs == (TensorName.IMAGE, TensorName.TEXT) else (),
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
