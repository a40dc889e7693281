"""A graph: one exportable function with named, typed, shaped inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cirrus_client.bundle import DType, TensorSpec

TORCH_DTYPES = {DType.FLOAT32: torch.float32, DType.INT64: torch.int64}


@dataclass(frozen=True)
class Graph:
    """A module whose positional arguments are `inputs`, in order, and whose results are `outputs`.

    Names of outputs must differ from every parameter's name: an ONNX graph with such a clash is invalid, and no
    exporter says so.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def pixels(size_px: int) -> TensorSpec:
    """Normalised RGB, float32 [B, 3, size_px, size_px]."""
    return TensorSpec(name="pixels", shape=(3, size_px, size_px))


def token_ids(context_length: int) -> TensorSpec:
    """Text token ids, int64 [B, T]."""
    return TensorSpec(name="token_ids", dtype=DType.INT64, shape=(context_length,))


def vector(name: str, dim: int) -> TensorSpec:
    """One vector an item, float32 [B, D]."""
    return TensorSpec(name=name, shape=(dim,))


def vectors(name: str, count: int, dim: int) -> TensorSpec:
    """Several vectors an item, float32 [B, count, D]."""
    return TensorSpec(name=name, shape=(count, dim))
