"""A graph: one exportable function with named, typed, shaped inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cirrus_client.bundle import DYNAMIC, DType, TensorSpec
from cirrus_client.names import TensorName

TORCH_DTYPES = {DType.FLOAT32: torch.float32, DType.INT64: torch.int64}


@dataclass(frozen=True)
class Graph:
    """A module whose positional arguments are `inputs`, in order, and whose results are `outputs`.

    name: a `GraphName`, or a name of the recipe's own. An output must not be called like a parameter of the module: the
    ONNX graph would be invalid, and no exporter says so. text_lengths: what dynamic dimensions may be, the shortest
    first.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    text_lengths: tuple[int, ...] = ()


class Call(nn.Module):
    """A bound method of one tensor as a module that owns the weights which the method uses."""

    def __init__(self, function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], owner: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.owner = owner

    def forward(self, tensor: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Call the method."""
        return self.function(tensor)


def pixels(size_px: int) -> TensorSpec:
    """Return the input of normalised RGB images, float32 [B, 3, size_px, size_px]."""
    return TensorSpec(name=TensorName.PIXELS, shape=(3, size_px, size_px))


def token_ids(lengths: tuple[int, ...]) -> TensorSpec:
    """Return the input of tokenized texts, int64 [B, T]. lengths: see `text_axis`."""
    return TensorSpec(name=TensorName.TOKEN_IDS, dtype=DType.INT64, shape=(text_axis(lengths),))


def text_axis(lengths: tuple[int, ...]) -> int:
    """Return the size of the text axis T that may have these lengths: DYNAMIC if there are several."""
    return lengths[0] if len(lengths) == 1 else DYNAMIC


def vector(name: str, dim: int) -> TensorSpec:
    """Return a tensor with one vector per item, float32 [B, D]."""
    return TensorSpec(name=name, shape=(dim,))


def vectors(name: str, count: int, dim: int) -> TensorSpec:
    """Return a tensor with several vectors per item, float32 [B, count, D]."""
    return TensorSpec(name=name, shape=(count, dim))
