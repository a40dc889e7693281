"""The shape of every tensor in an ONNX graph, for given sizes of its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from cirrus_export.compile.half_attention import model_to_compile

_OF_SHAPES = ("Add", "Concat", "Div", "Gather", "Mul", "Range", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze")
_FEW = 64
Constants = dict[str, NDArray[np.int64]]


def with_shapes(path: Path, batch: int, text_length: int) -> onnx.GraphProto:
    """Return a graph as it is compiled, without large weights and with the shapes of its tensors.

    text_length: the size of inputs' dynamic dimensions other than the batch. Shapes that a graph computes from others
    are computed as well, which ONNX's own inference does in part.
    """
    model = model_to_compile(path)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        first, *others = value.type.tensor_type.shape.dim
        first.dim_value = batch
        for dimension in others:
            if text_length and not dimension.HasField("dim_value"):
                dimension.dim_value = text_length
    while True:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        computed = _computed(inferred.graph)
        if not computed:
            return inferred.graph
        kept = [node for node in model.graph.node if node.output[0] not in computed]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in computed.items())


def sizes(shape: onnx.TensorShapeProto) -> tuple[int, ...]:
    """Return the sizes; one that is not known is 0."""
    return tuple(dimension.dim_value for dimension in shape.dim)


def _computed(graph: onnx.GraphProto) -> Constants:
    """Return the outputs of nodes that do nothing but compute shapes, as far as these are known."""
    values = (*graph.value_info, *graph.input)
    shapes = {value.name: sizes(value.type.tensor_type.shape) for value in values}
    known: Constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64 and np.prod(tensor.dims) <= _FEW
    }
    found: Constants = {}
    for node in graph.node:
        if node.op_type == "Shape" and all(shapes.get(node.input[0], (0,))):
            start, end = (_attribute(node, name, default) for name, default in (("start", 0), ("end", None)))
            found[node.output[0]] = np.array(shapes[node.input[0]][start:end], dtype=np.int64)
        elif node.op_type in _OF_SHAPES and set(node.input) - {""} <= known.keys() | found.keys():
            feeds = {name: (known | found)[name] for name in node.input if name}
            (result,) = ReferenceEvaluator(node).run(None, feeds)
            found[node.output[0]] = np.asarray(result)
    return found


def _attribute(node: onnx.NodeProto, name: str, default: int | None) -> int | None:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
