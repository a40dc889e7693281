"""Make a bundle's canary: a few of the probe's items, sent through the torch original stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cirrus_client.canary import Canary, CanarySpec
from cirrus_client.names import EnsembleName, TensorName
from cirrus_export.gate.fidelity import ProbeTensors, run_torch
from cirrus_export.gate.thresholds import Thresholds
from cirrus_export.graph import Graph
from cirrus_export.recipes.recipe import Recipe

_ITEMS = 4


def make_canary(recipe: Recipe, graphs: Sequence[Graph], probe: ProbeTensors, thresholds: Thresholds) -> Canary:
    """Return the canary of an export. thresholds: what its graphs must reach, here and wherever they run."""
    items = min(_ITEMS, len(probe.probe.queries))
    queries = probe.probe.queries[:items]
    tensors = probe.stage_inputs(graphs, items=items)
    inputs = {spec.name for graph in graphs for spec in graph.inputs} | {TensorName.PIXELS, TensorName.TOKEN_IDS}
    pixels = torch.from_numpy(probe.query_pixels[:items])
    token_ids = torch.from_numpy(probe.token_ids[:items])
    ensembles = recipe.ensembles()
    with torch.no_grad():
        embeddings = {EnsembleName.ENCODE_TARGET: recipe.target(pixels).numpy()}
        if EnsembleName.ENCODE_QUERY in ensembles:
            embeddings[EnsembleName.ENCODE_QUERY] = recipe.query(pixels, token_ids).numpy()
        if EnsembleName.ENCODE_TEXT_QUERY in ensembles:
            embeddings[EnsembleName.ENCODE_TEXT_QUERY] = recipe.text_query(token_ids).numpy()
        if EnsembleName.SCORE_CANDIDATE in ensembles:
            condition = recipe.condition(pixels, token_ids)
            embeddings[EnsembleName.ENCODE_CONDITION] = condition.numpy()
            embeddings[EnsembleName.SCORE_CANDIDATE] = recipe.score(pixels, condition, token_ids).numpy()
    return Canary(
        spec=CanarySpec(texts=tuple(query.text for query in queries), cosine_min=thresholds.cosine_min),
        images=tuple(query.image for query in queries),
        tensors={name: tensors[name] for name in sorted(inputs)},
        outputs={graph.name: run_torch(graph, tensors) for graph in graphs},
        embeddings=embeddings,
    )
