"""Wire graphs into an ensemble by the names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cirrus_client.ensemble import EMBEDDING, EnsembleSpec, StepSpec, image_step, text_step
from cirrus_client.names import TensorName
from cirrus_export.graph import Graph


def ensemble(*graphs: Graph, output: str = EMBEDDING, fed: Mapping[str, str] = MappingProxyType({})) -> EnsembleSpec:
    """Return the ensemble that runs graphs in this order, with the host's steps for images and texts before them.

    An output feeds every later input of its name, also one that the host could make. A condition that no graph makes is
    an input of the ensemble. In an ensemble of image and text the text may be absent. output: the name of the result;
    an embedding is the first output of the last graph, anything else its output of this name. fed: inputs, by name, and
    the output of another name that feeds them in every later graph.
    """
    read = [_read(graph, graphs[:position], fed) for position, graph in enumerate(graphs)]
    made = {spec.name for graph in graphs for spec in graph.outputs}
    needed = {tensor for inputs in read for tensor in inputs.values()} - made
    host_steps = [
        step
        for tensor, step in ((TensorName.PIXELS, image_step()), (TensorName.TOKEN_IDS, text_step()))
        if tensor in needed
    ]
    inputs = tuple(name for step in host_steps for name in step.inputs.values())
    return EnsembleSpec(
        inputs=inputs + ((TensorName.CONDITION,) if TensorName.CONDITION in needed else ()),
        optional=(TensorName.TEXT,) if {TensorName.IMAGE, TensorName.TEXT} <= set(inputs) else (),
        steps=(
            *host_steps,
            *(_step(graph, read[position], read[position + 1 :], output) for position, graph in enumerate(graphs)),
        ),
        output=output,
    )


def _read(graph: Graph, earlier: Sequence[Graph], fed: Mapping[str, str]) -> dict[str, str]:
    """Return what a graph reads: the tensor of each of its inputs."""
    made = {spec.name for before in earlier for spec in before.outputs}
    return {spec.name: fed[spec.name] if fed.get(spec.name) in made else spec.name for spec in graph.inputs}


def _step(graph: Graph, inputs: dict[str, str], later: Sequence[dict[str, str]], output: str) -> StepSpec:
    taken = {tensor for after in later for tensor in after.values()}
    outputs = {spec.name: spec.name for spec in graph.outputs if spec.name in taken}
    result = graph.outputs[0].name if output == EMBEDDING else output
    return StepSpec(
        model=graph.name,
        inputs=inputs,
        outputs=outputs if later else {result: output},
    )
