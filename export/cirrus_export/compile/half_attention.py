"""Give TensorRT the attention of an eight-bit graph in half precision, which is the precision that it fuses.

It fuses no attention whose products are float32, and those of an eight-bit graph are: only its linear layers are
quantised. ONNX files keep float32 there, because engines on CPUs multiply it faster than float16.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def model_to_compile(file: Path) -> onnx.ModelProto:
    """Return an ONNX file's model as TensorRT is given it. Weights that lie beside the file stay there.

    If the file is quantised, every product of two activations is in float16, cast there and back; else nothing changes.
    The demo's embeddings keep their cosine to the sixth decimal, in int8 and in fp8.
    """
    model = onnx.load(file, load_external_data=False)
    if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return model
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}

    def is_activation(name: str) -> bool:
        return name not in constants and makers.get(name) not in ("DequantizeLinear", "Constant")

    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "MatMul" and all(map(is_activation, node.input)):
            nodes += _in_half(node)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _in_half(product: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a product between casts. Its result keeps its name."""
    half = onnx.NodeProto()
    half.CopyFrom(product)
    casts = [
        helper.make_node("Cast", [name], [f"{product.name}_half_{position}"], to=TensorProto.FLOAT16)
        for position, name in enumerate(product.input)
    ]
    half.input[:] = [cast.output[0] for cast in casts]
    half.output[0] = f"{product.name}_half"
    back = helper.make_node("Cast", [half.output[0]], [product.output[0]], to=TensorProto.FLOAT)
    return [*casts, half, back]
