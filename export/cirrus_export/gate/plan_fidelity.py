"""Compare a compiled plan with its ONNX graph on real inputs: one batch, and one item of it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle, Precision
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


class GraphValues:
    """Real inputs and outputs of every graph: the probe's items sent through a bundle's graphs on ONNX Runtime.

    They run on the CPU, whose kernels are not those that are compared; bfloat16 on a GPU, since the CPU has none. Of a
    tensor that several graphs make, the first is kept, as in `ProbeTensors.stage_inputs`.
    """

    def __init__(self, bundle: Bundle, probe: Probe) -> None:
        spec = bundle.spec
        providers = None if spec.precision is Precision.BF16 else ["CPUExecutionProvider"]
        queries = probe.queries[:_ITEMS]
        self._tensors: dict[str, NDArray[Any]] = {
            TensorName.PIXELS: np.stack([preprocess(query.image, spec.preprocess) for query in queries]),
            TensorName.TOKEN_IDS: Tokenizer(spec.tokenizer, bundle.root)([query.text for query in queries]),
        }
        self._bundle = bundle
        self._outputs: dict[str, dict[str, NDArray[Any]]] = {}
        for name in spec.graphs:
            engine = OnnxRuntimeEngine(bundle.graph_file(name), bundle.spec.precision, providers=providers)
            self._outputs[name] = engine(self.inputs(name))
            self._tensors = self._outputs[name] | self._tensors

    def inputs(self, graph: str) -> dict[str, NDArray[Any]]:
        """Return a graph's inputs, [B, *shape]."""
        return {spec.name: self._tensors[spec.name] for spec in self._bundle.spec.graphs[graph].inputs}

    def outputs(self, graph: str) -> dict[str, NDArray[Any]]:
        """Return the ONNX graph's outputs for them, [B, *shape]."""
        return self._outputs[graph]


def hold_to_graphs(
    bundle: Bundle, values: GraphValues, load: Callable[[str], Engine], *, graphs: Sequence[str] | None = None
) -> dict[str, float]:
    """Return each graph's smallest cosine between an engine's and the ONNX graph's outputs for the same inputs.

    load: returns the engine of a graph. graphs: those that are compared, all by default. Raises
    FidelityError, which names every graph under the threshold of the bundle's precision.
    """
    cosines = {
        graph: _cosine(load(graph), values.inputs(graph), values.outputs(graph))
        for graph in (bundle.spec.graphs if graphs is None else graphs)
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


def _cosine(engine: Engine, inputs: Arrays, expected: Mapping[str, NDArray[Any]]) -> float:
    batch = engine(inputs)
    alone = engine({name: value[:1] for name, value in inputs.items()})
    of_batch = [cosine_min(value, batch[name]) for name, value in expected.items()]
    of_one = [cosine_min(value[:1], alone[name]) for name, value in expected.items()]
    return float(np.min(of_batch + of_one))  # a NaN stays one
