"""Tell from the engine inspector's layers whether TensorRT fused the attention.

A fused attention is one kernel whose name contains `mha`, like `_gemm_mha_v2_myl0_17` (TensorRT's maintainers in
TensorRT#3243; such a layer's JSON is in TensorRT#4397). Layers are JSON objects if the plan was built with detailed
verbosity, and bare names otherwise ("Engine Inspector" in TensorRT's documentation).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import shape_inference

from cirrus_client.plans import AttentionSpec, Fusion

_FUSED = "mha"
_KERNEL = "_gemm_mha_v2"
_FUSED_IN_PLAN = re.compile(rb"(?<![A-Za-z0-9_])" + _KERNEL.encode() + rb"(?![A-Za-z0-9_])")
_SHOWN = 8
_ATTENTION = "Attention"
_SOFTMAX = "Softmax"
_BETWEEN = ("Cast", "Identity", "Reshape", "Transpose", "Where", "IsNaN", "Squeeze", "Unsqueeze")


def attention_of(layers: str, attentions: int) -> AttentionSpec:
    """Return what the engine inspector's JSON says of a graph's attentions. attentions: how many the ONNX graph has."""
    found = _layers(layers)
    fused = [name for name, tactic in found if _FUSED in f"{name} {tactic}".lower()]
    fusion = _fusion(len(fused), attentions) if found or attentions == 0 else Fusion.UNKNOWN
    evidence = fused or [name for name, _ in found]
    return AttentionSpec(
        fusion=fusion, attentions=attentions, fused_layers=len(fused), evidence=tuple(evidence[:_SHOWN])
    )


def attention_in_plan(plan: Any, attentions: int, *, profiles: int) -> AttentionSpec:
    """Return what a plan's own bytes say of a graph's attentions: the inspector needs a GPU, and this does not.

    plan: bytes-like, built by TensorRT for RTX 1.7, which writes `_gemm_mha_v2` once for each fused attention in each
    optimization profile, however many compute capabilities it was built for. attentions: how many the ONNX graph has.
    profiles: how many the plan has; an attention that only some of them fuse is not counted.
    """
    fused = len(_FUSED_IN_PLAN.findall(memoryview(plan))) // profiles
    evidence = (_KERNEL,) if fused else ()
    return AttentionSpec(
        fusion=_fusion(fused, attentions), attentions=attentions, fused_layers=fused, evidence=evidence
    )


def _fusion(fused: int, attentions: int) -> Fusion:
    if attentions == 0:
        return Fusion.NONE
    if fused == 0:
        return Fusion.UNFUSED
    return Fusion.FUSED if fused >= attentions else Fusion.PARTLY


def count_attentions(graph: Path) -> int:
    """Return how many attentions an ONNX graph has: softmaxes whose result is multiplied, and Attention operators.

    An attention of one token to the others, like the last block of CLIP's gallery graph, is not counted: its scores are
    one row a head, so there is nothing to gain by fusing it, and TensorRT does not.
    """
    shown = shape_inference.infer_shapes(onnx.load(graph, load_external_data=False)).graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in shown.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    of_one_row = {value.name for value in shown.value_info if _rows(value) == 1}
    return sum(
        node.op_type == _ATTENTION
        or (node.op_type == _SOFTMAX and node.output[0] not in of_one_row and _is_multiplied(node, readers))
        for node in shown.node
    )


def _rows(value: onnx.ValueInfoProto) -> int | None:
    """Return the size of a tensor's last axis but one, or None if it is unknown or depends on the input."""
    axes = value.type.tensor_type.shape.dim
    return axes[-2].dim_value or None if len(axes) > 1 else None


def _is_multiplied(node: onnx.NodeProto, readers: Mapping[str, Iterable[onnx.NodeProto]]) -> bool:
    following = [reader for name in node.output for reader in readers.get(name, ())]
    return any(
        reader.op_type == "MatMul" or (reader.op_type in _BETWEEN and _is_multiplied(reader, readers))
        for reader in following
    )


def _layers(text: str) -> list[tuple[str, str]]:
    """Return each layer's name and tactic."""
    content: Any = json.loads(text)
    return [
        (layer, "") if isinstance(layer, str) else (layer["Name"], layer.get("TacticName", ""))
        for layer in content["Layers"]
    ]
