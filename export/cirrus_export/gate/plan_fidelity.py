"""Compare a compiled plan with its ONNX graph on real inputs: a batch and one item alone, with long and short texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import DYNAMIC, Bundle, GraphSpec, Precision, TensorSpec
from cirrus_client.engines.engine import Engine
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import FidelityError
from cirrus_client.image.preprocess import preprocess
from cirrus_client.names import TensorName
from cirrus_client.tokenizer import Tokenizer
from cirrus_export.gate.probe import Probe
from cirrus_export.gate.thresholds import THRESHOLDS

_ITEMS = 8


@dataclass(frozen=True)
class Case:
    """Inputs of a graph, [B, *shape] each, and what the ONNX graph makes of them."""

    inputs: Arrays
    outputs: Arrays


class GraphValues:
    """Real inputs and outputs of every graph: the probe's items sent through a bundle's graphs on ONNX Runtime.

    They run on the CPU, whose kernels are not those that are compared; bfloat16 on a GPU, since the CPU has none. Of a
    tensor that several graphs make, the first is kept, as in `ProbeTensors.stage_inputs`.
    """

    def __init__(self, bundle: Bundle, probe: Probe) -> None:
        spec = bundle.spec
        providers = None if spec.precision is Precision.BF16 else ["CPUExecutionProvider"]
        queries = probe.queries[:_ITEMS]
        tensors: dict[str, NDArray[Any]] = {
            TensorName.PIXELS: np.stack([preprocess(query.image, spec.preprocess) for query in queries]),
            TensorName.TOKEN_IDS: Tokenizer(spec.tokenizer, bundle.root)([query.text for query in queries]),
        }
        self._cases: dict[str, tuple[Case, ...]] = {}
        for name, graph in spec.graphs.items():
            engine = OnnxRuntimeEngine(bundle.graph_file(name), spec.precision, providers=providers)
            self._cases[name] = tuple(Case(given, engine(given)) for given in _of_lengths(graph, tensors))
            tensors = {**self._cases[name][0].outputs, **tensors}

    def cases(self, graph: str) -> tuple[Case, ...]:
        """Return a graph's inputs and outputs: with texts of the full context, then of the shortest length there is."""
        return self._cases[graph]


def hold_to_graphs(
    bundle: Bundle, values: GraphValues, load: Callable[[str], Engine], *, graphs: Sequence[str] | None = None
) -> dict[str, float]:
    """Return each graph's smallest cosine between an engine's and the ONNX graph's outputs for the same inputs.

    load: returns the engine of a graph. graphs: those that are compared, all by default. Raises
    FidelityError, which names every graph under the threshold of the bundle's precision.
    """
    cosines = {
        graph: _cosine(load(graph), values.cases(graph)) for graph in (bundle.spec.graphs if graphs is None else graphs)
    }
    threshold = THRESHOLDS[bundle.spec.precision].cosine_min
    missed = {graph: value for graph, value in cosines.items() if not value >= threshold}  # a NaN misses
    if missed:
        listed = ", ".join(f"{graph} {value:.6f}" for graph, value in missed.items())
        raise FidelityError(
            f"bundle {bundle.root}: plans do not reproduce their ONNX graphs; cosine {listed}, {bundle.spec.precision} "
            f"needs {threshold}. No plan was kept; serve the onnxruntime flavour, or export in a higher precision"
        )
    return cosines


def _of_lengths(graph: GraphSpec, tensors: Arrays) -> Iterator[Arrays]:
    """Yield a graph's inputs with the longest texts that it takes and, if it takes several lengths, the shortest."""
    for length in sorted({*graph.text_lengths[:1], *graph.text_lengths[-1:]}, reverse=True) or [0]:
        yield {spec.name: _cut(tensors[spec.name], spec, length) for spec in graph.inputs}


def _cut(tensor: NDArray[Any], spec: TensorSpec, length: int) -> NDArray[Any]:
    """Return a tensor with its dynamic dimensions cut to a length."""
    return tensor[(slice(None), *(slice(length if size == DYNAMIC else None) for size in spec.shape))]


def _cosine(engine: Engine, cases: Sequence[Case]) -> float:
    found: list[float] = []
    for case in cases:
        for rows in (slice(None), slice(1)):
            outputs = engine({name: value[rows] for name, value in case.inputs.items()})
            found += [cosine_min(value[rows], outputs[name]) for name, value in case.outputs.items()]
    return float(np.min(found))  # a NaN stays one
