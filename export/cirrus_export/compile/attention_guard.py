"""Take the guard against rows that are masked throughout out of exported attention.

torch writes attention as softmax, then zeros in place of the NaNs that a row without a single unmasked key would give
(`_safe_softmax`). Between softmax and product, this guard keeps TensorRT from fusing the attention, and stops its
builder in half precision. No row of a recipe's graph is masked throughout: a text begins with a token that every token
sees, and images are not masked. If one were, the outputs would be NaN, and the gate would fail.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def remove_attention_guards(model: onnx.ModelProto) -> int:
    """Replace Where(IsNaN(softmax), 0, softmax) by softmax throughout, in place, and return how often."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    outputs = {output.name for output in graph.output}
    zeros = {tensor.name for tensor in graph.initializer if _is_zero(tensor)} | {
        node.output[0]
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value" and _is_zero(node.attribute[0].t)
    }
    guards = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Where" and _is_guard(node, makers, zeros) and node.output[0] not in outputs
    }
    softmaxes = {output: guard.input[2] for output, guard in guards.items()}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = softmaxes.get(name, name)
    for guard in guards.values():
        graph.node.remove(guard)
    _remove_unread(graph, {guard.input[0] for guard in guards.values()})
    return len(guards)


def _is_guard(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], zeros: set[str]) -> bool:
    condition, replacement, value = node.input
    asked, softmax = makers.get(condition), makers.get(value)
    return (
        asked is not None
        and softmax is not None
        and asked.op_type == "IsNaN"
        and list(asked.input) == [value]
        and softmax.op_type == "Softmax"
        and replacement in zeros
    )


def _is_zero(tensor: onnx.TensorProto) -> bool:
    return (
        not tensor.dims
        and tensor.data_location != onnx.TensorProto.EXTERNAL
        and not np.any(numpy_helper.to_array(tensor))
    )


def _remove_unread(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove the makers of values that no node reads any more."""
    read = {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if set(node.output) & names]:
        if not set(node.output) & read:
            graph.node.remove(node)
