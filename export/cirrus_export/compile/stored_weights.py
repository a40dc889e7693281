"""Store a large graph's weights as they were published: in 16 bits, where these hold every value exactly."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

_SIXTEEN_BITS = {ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16), ir.DataType.FLOAT16: np.dtype(np.float16)}
_FEWEST_VALUES = 1024
"""Biases stay as they are: they are no size."""


def store_in_16_bits(path: Path) -> None:
    """Halve the file of weights beside a float32 ONNX file, in place, where the checkpoint was published in 16 bits.

    Each tensor whose values all are bfloat16 or float16 values is stored so, behind a cast to float32. Engines compute
    the cast when they load the graph, so that they run what they would have run: embeddings are the same to the bit. A
    graph whose weights lie in the ONNX file itself stays as it is.
    """
    weights = path.with_name(path.name + ".data")
    if not weights.exists():
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        # The file that the tensors are read from can't be written over meanwhile.
        with _mapped(path) as model:
            if not _narrow(model.graph):
                return
            ir.save(model, Path(scratch, path.name), external_data=weights.name)
        for file in (weights, path):
            os.replace(Path(scratch, file.name), file)


@contextmanager
def _mapped(path: Path) -> Iterator[ir.Model]:
    """Open a model whose weights stay in their file, and let go of the file, which would keep its place on the disk."""
    model = ir.load(path)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    try:
        yield model
    finally:
        for tensor in tensors:
            if isinstance(tensor, ir.ExternalTensor):
                tensor.release()


def _narrow(graph: ir.Graph) -> bool:
    """Put casts before the first node, and return whether there are any."""
    casts = []
    for value in tuple(graph.initializers.values()):
        dtype = _narrowest(value.const_value)
        if dtype is not None:
            casts.append(_cast(graph, value, dtype))
    if casts:
        graph.insert_before(graph[0], casts)
    return bool(casts)


def _narrowest(tensor: ir.TensorProtocol | None) -> ir.DataType | None:
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _FEWEST_VALUES:
        return None
    values = tensor.numpy()
    for dtype, kind in _SIXTEEN_BITS.items():
        with np.errstate(over="ignore"):
            returned = values.astype(kind).astype(np.float32)
        if np.array_equal(returned.view(np.uint32), values.view(np.uint32)):
            return dtype
    return None


def _cast(graph: ir.Graph, weight: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Return a cast whose result takes a weight's place and name."""
    name, tensor, kind = weight.name, weight.const_value, _SIXTEEN_BITS[dtype]
    assert name is not None
    assert tensor is not None
    shape = ir.Shape(tensor.numpy().shape)
    stored = ir.Value(
        name=f"{name}.stored",
        shape=shape,
        type=ir.TensorType(dtype),
        const_value=ir.LazyTensor(
            lambda: ir.Tensor(tensor.numpy().astype(kind)), dtype=dtype, shape=shape, name=f"{name}.stored"
        ),
    )
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
    widened = cast.outputs[0]
    widened.shape, widened.type = shape, weight.type
    weight.replace_all_uses_with(widened)
    del graph.initializers[name]
    widened.name = name
    graph.register_initializer(stored)
    return cast
