"""The shortest time that a graph can take on a card: its work divided by the rates that the card's maker publishes.

Work is counted in the ONNX file that is compiled, so that what a precision leaves in float32 counts as float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from cirrus_bench.card_rates import CardRates
from cirrus_bench.errors import FloorError
from cirrus_bench.shapes import sizes, with_shapes
from cirrus_client.bundle import Precision

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_PRECISIONS = {
    TensorProto.FLOAT: Precision.FP32,
    TensorProto.FLOAT16: Precision.FP16,
    TensorProto.BFLOAT16: Precision.BF16,
    TensorProto.INT8: Precision.INT8,
    TensorProto.FLOAT8E4M3FN: Precision.FP8,
}
_SAME_VALUES = ("Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand")
_STORED = ("Cast", "QuantizeLinear")


@dataclass(frozen=True)
class GraphWork:
    """What one run of a graph must do.

    operations: of its matrix products and convolutions by their precision; a multiply-add is two. bytes: of weights,
    inputs and outputs, each moved once; what lies between may stay on the chip.
    """

    operations: Mapping[Precision, int]
    bytes: int

    def floor_s(self, card: CardRates) -> float | None:
        """Return the shortest time on a card in seconds, or None if it lacks a precision that the graph needs.

        Products follow each other, so their times add up. Reading memory can overlap with all of them.
        """
        if not set(self.operations) <= set(card.operations):
            return None
        arithmetic = sum(count / card.operations[precision] for precision, count in self.operations.items())
        return max(arithmetic, self.bytes / card.bytes)


def graph_work(path: Path, batch: int, *, text_length: int = 0) -> GraphWork:
    """Count the work of an ONNX file for a batch. text_length: what its other dynamic dimensions are.

    Raises FloorError, which names the node, if the size or type of a product can't be told.
    """
    return _Counter(path, batch, text_length).work()


class _Counter:
    def __init__(self, path: Path, batch: int, text_length: int) -> None:
        self._path = path
        self._graph = with_shapes(path, batch, text_length)
        values = (*self._graph.value_info, *self._graph.input, *self._graph.output)
        self._kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        self._shapes = {value.name: sizes(value.type.tensor_type.shape) for value in values}
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._kinds |= {name: tensor.data_type for name, tensor in self._constants.items()}
        self._shapes |= {name: tuple(tensor.dims) for name, tensor in self._constants.items()}
        self._makers = {name: node for node in self._graph.node for name in node.output}

    def work(self) -> GraphWork:
        operations: Counter[Precision] = Counter()
        for node in self._graph.node:
            if node.op_type in _PRODUCTS:
                operations[self._precision(node)] += self._operations(node)
        ends = [value.name for value in (*self._graph.input, *self._graph.output)]
        moved = sum(self._size(name, self._kinds[name]) for name in ends)
        return GraphWork(dict(operations), moved + self._weight_bytes())

    def _operations(self, node: onnx.NodeProto) -> int:
        """Return the operations of a product: a multiplication and an addition per output value and summed term."""
        left, right, output = (self._shape(node, name) for name in (*node.input[:2], node.output[0]))
        if node.op_type == "Conv":
            return 2 * prod(output) * prod(right[1:])
        transposed = any(setting.name == "transA" and setting.i for setting in node.attribute)
        return 2 * prod(output) * (left[0] if transposed else left[-1])

    def _precision(self, node: onnx.NodeProto) -> Precision:
        """Return the precision that both operands were last stored in: eight bits behind DequantizeLinear."""
        left, right = (self._stored_kind(name) for name in node.input[:2])
        kind = left if left == right else self._kinds.get(node.output[0])
        if kind not in _PRECISIONS:
            raise FloorError(f"{self._path}: the precision of {node.op_type} {node.name} can't be told")
        return _PRECISIONS[kind]

    def _stored_kind(self, name: str) -> int | None:
        maker = self._makers.get(name)
        while maker is not None and maker.op_type in _SAME_VALUES:
            if maker.op_type == "Cast":
                break
            maker = self._makers.get(maker.input[0])
        if maker is not None and maker.op_type == "DequantizeLinear":
            return self._kinds.get(maker.input[0])
        return self._kinds.get(name)

    def _weight_bytes(self) -> int:
        """Return the bytes of the weights as stored after constant folding; of a table, those of the rows read."""
        readers: dict[str, list[onnx.NodeProto]] = {name: [] for name in self._constants}
        for node in self._graph.node:
            for name in node.input:
                if name in readers:
                    readers[name].append(node)
        return sum(self._read_bytes(name, nodes) for name, nodes in readers.items() if nodes)

    def _read_bytes(self, name: str, readers: list[onnx.NodeProto]) -> int:
        whole = self._size(name, self._kinds[name])
        if all(node.op_type in _STORED for node in readers):
            return min(whole, sum(self._size(name, self._kinds[node.output[0]]) for node in readers))
        if all(node.op_type == "Gather" and node.input[0] == name for node in readers):
            return min(whole, sum(self._size(node.output[0], self._kinds[name]) for node in readers))
        return whole

    def _size(self, name: str, kind: int) -> int:
        return prod(self._shapes[name]) * helper.tensor_dtype_to_np_dtype(kind).itemsize

    def _shape(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        shape = self._shapes.get(name)
        if shape is None or 0 in shape:
            raise FloorError(f"{self._path}: the sizes of {node.op_type} {node.name} can't be told")
        return shape
