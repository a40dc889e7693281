"""Export a torch module to an ONNX file."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch.export import Dim

from cirrus_client.bundle import DYNAMIC, DType, GraphSpec, TensorSpec
from cirrus_client.errors import ExportError
from cirrus_export.compile.attention_guard import remove_attention_guards
from cirrus_export.graph import TORCH_DTYPES, Graph
from cirrus_export.quiet import errors_only

OPSET = 20
# Protobuf can't hold more than 2 GiB; larger weights go into a file of their own beside the graph.
_EXTERNAL_DATA_BYTES = 1_500_000_000


def write_onnx(graph: Graph, path: Path) -> GraphSpec:
    """Export a graph with a dynamic batch dimension, and text lengths if it has several, and return its description.

    Weights over 1.5 GB are written to `<path>.data` beside it. Raises ExportError for a module that torch can't export,
    like one that decides by a tensor's values what it computes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    examples = tuple(_example(spec, graph) for spec in graph.inputs)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph.module.eval(),
                examples,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in graph.inputs],
                output_names=[spec.name for spec in graph.outputs],
                dynamic_shapes=_dynamic_shapes(graph),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ExportError(
            f"graph {graph.name}: torch can't export its module, {type(graph.module).__name__}: {reason} "
            "(cirrus -v shows where)"
        ) from error
    assert program is not None  # the dynamo exporter always returns a program
    program.save(str(path), external_data=_weight_bytes(graph) > _EXTERNAL_DATA_BYTES)
    _remove_guards(path)
    onnx.checker.check_model(str(path), full_check=True)
    return GraphSpec(
        file=f"graphs/{path.name}", inputs=graph.inputs, outputs=graph.outputs, text_lengths=graph.text_lengths
    )


def _remove_guards(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    if remove_attention_guards(model):
        onnx.save(model, path)


def _dynamic_shapes(graph: Graph) -> tuple[dict[int, Dim], ...]:
    """Return the dynamic dimensions of each input."""
    batch = Dim("batch", min=1)
    lengths = graph.text_lengths
    text = Dim("text_tokens", min=lengths[0], max=lengths[-1]) if len(lengths) > 1 else None
    return tuple(
        {0: batch} | {axis: text for axis, size in enumerate(spec.shape, start=1) if size == DYNAMIC and text}
        for spec in graph.inputs
    )


def _example(spec: TensorSpec, graph: Graph) -> torch.Tensor:
    """Return an example of two items: torch.export would take a batch of one for a constant."""
    shape = (2, *(spec.sized(graph.text_lengths[-1]) if graph.text_lengths else spec.shape))
    if spec.dtype is DType.INT64:
        return torch.ones(shape, dtype=torch.int64)
    return torch.zeros(shape, dtype=TORCH_DTYPES[spec.dtype])


def _weight_bytes(graph: Graph) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in graph.module.state_dict().values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which prints its progress and warns about torch's own internals."""
    with errors_only("torch.onnx", "onnxscript"), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
