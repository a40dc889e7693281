"""What Qwen2.5-VL has of its own in a Qwen-VL (arXiv 2502.13923; transformers, `modeling_qwen2_5_vl.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from cirrus_export.heads.qwen2_vl import Qwen2VlTower


class Qwen25VlTower(Qwen2VlTower):
    """Most blocks attend within square windows. Windows at the right and the lower edge may be smaller."""

    same_window: Tensor

    def __init__(self, visual: Qwen2_5_VisionTransformerPretrainedModel, size_px: int) -> None:
        super().__init__(visual, size_px)
        token_px = int(self.config.patch_size * self.config.spatial_merge_size)
        strips = torch.arange(size_px // token_px) // (int(self.config.window_size) // token_px)
        windows = strips[:, None] * len(strips) + strips
        of_patches = windows.flatten().repeat_interleave(int(self.config.spatial_merge_size) ** 2)
        self._keep("same_window", of_patches[:, None] == of_patches)

    def attended(self, number: int) -> Tensor | None:
        """See `VisionTower.attended`."""
        return None if number in self.visual.fullatt_block_indexes else self.same_window
