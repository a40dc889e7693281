"""What Qwen2-VL has of its own in a Qwen-VL (arXiv 2409.12191; transformers, `modeling_qwen2_vl.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from cirrus_export.heads.qwen_vl import VisionTower


class Qwen2VlTower(VisionTower):
    """Where a patch is, its rotation alone says."""

    def positioned(self, hidden: Tensor) -> Tensor:
        """See `VisionTower.positioned`."""
        return hidden

    def merged(self, merger: Any, hidden: Tensor) -> Tensor:
        """See `VisionTower.merged`."""
        merge = int(self.config.spatial_merge_size) ** 2
        merged: Tensor = merger.mlp(merger.ln_q(hidden).unflatten(1, (-1, merge)).flatten(2))
        return merged


def axes_of(rotary: Qwen2VLRotaryEmbedding) -> Tensor:
    """Return the axis of each frequency: first those of time, then of height, then of width."""
    return torch.repeat_interleave(torch.arange(3), torch.tensor(rotary.mrope_section))
