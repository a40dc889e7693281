"""What Qwen3-VL has of its own in a Qwen-VL (arXiv 2511.21631; transformers, `modeling_qwen3_vl.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding, Qwen3VLVisionModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from cirrus_export.heads.qwen_vl import VisionTower


class Qwen3VlTower(VisionTower):
    """Patches have learnt positions, and three blocks give the language model tokens as well (deepstack)."""

    learnt_positions: Tensor

    def __init__(self, visual: Qwen3VLVisionModel, size_px: int) -> None:
        super().__init__(visual, size_px)
        with torch.no_grad():
            indices, weights = get_vision_interpolation_indices_and_weights(
                self.sizes,
                num_grid_per_side=visual.num_grid_per_side,
                mode=visual.interpolation_mode,
                align_corners=visual.interpolation_align_corners,
                spatial_merge_size=self.config.spatial_merge_size,
            )
            self._keep("learnt_positions", (visual.pos_embed(indices) * weights[:, :, None]).sum(1))

    def positioned(self, hidden: Tensor) -> Tensor:
        """See `VisionTower.positioned`."""
        return hidden + self.learnt_positions

    def merged(self, merger: Any, hidden: Tensor) -> Tensor:
        """See `VisionTower.merged`."""
        merge = int(self.config.spatial_merge_size) ** 2
        if merger.use_postshuffle_norm:
            hidden = merger.norm(hidden.unflatten(1, (-1, merge)).flatten(2))
        else:
            hidden = merger.norm(hidden).unflatten(1, (-1, merge)).flatten(2)
        merged: Tensor = merger.linear_fc2(merger.act_fn(merger.linear_fc1(hidden)))
        return merged

    def deepstack(self) -> Mapping[int, Any]:
        """See `VisionTower.deepstack`."""
        return dict(zip(self.visual.deepstack_visual_indexes, self.visual.deepstack_merger_list, strict=True))


def axes_of(rotary: Qwen3VLTextRotaryEmbedding) -> Tensor:
    """Return the axis of each frequency: time, height and width take turns."""
    axes = torch.zeros(len(rotary.inv_freq), dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : rotary.mrope_section[axis] * 3 : 3] = axis
    return axes
