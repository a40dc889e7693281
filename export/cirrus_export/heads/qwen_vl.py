"""A Qwen-VL's vision tower and language model for images of one size, with every grid and position a constant.

It computes what transformers' own models do, whose code reads the sizes of images from tensors and can't be exported
(Qwen2-VL: arXiv 2409.12191; Qwen2.5-VL: arXiv 2502.13923; Qwen3-VL: arXiv 2511.21631).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.models.qwen3_vl.modeling_qwen3_vl import rotate_half
from transformers.vision_utils import get_vision_position_ids


class VisionTower(nn.Module, ABC):
    """Turns pixels into the tokens that the language model reads, those of every deepstack layer behind them."""

    cos: Tensor
    sin: Tensor
    embed_weight: Tensor

    def __init__(self, visual: Any, size_px: int) -> None:
        """size_px: side of the square image, a multiple of patch size times merge size."""
        super().__init__()
        self.visual: Any = visual
        self.config: Any = visual.config
        side = size_px // int(self.config.patch_size)
        self.sizes = torch.tensor([[1, side, side]])
        with torch.no_grad():
            weight = visual.patch_embed.proj.weight
            positions = get_vision_position_ids(self.sizes, self.config.spatial_merge_size)
            cos, sin = visual.rotary_pos_emb(weight, positions)
            self._keep("cos", cos)
            self._keep("sin", sin)
            self._keep("embed_weight", weight.sum(dim=2).flatten(1))  # an image is its own second frame

    @abstractmethod
    def positioned(self, hidden: Tensor) -> Tensor:
        """Return the patches [B, P, V] with the position embeddings that a model has besides its rotary ones."""

    @abstractmethod
    def merged(self, merger: Any, hidden: Tensor) -> Tensor:
        """Return tokens [B, N, W] of patches [B, N * merge^2, V]: what transformers' merger does, for a batch."""

    def deepstack(self) -> Mapping[int, Any]:
        """Return the merger behind a block, by the block's number."""
        return {}

    def attended(self, number: int) -> Tensor | None:
        """Return the patches that each patch attends to in a block, bool [P, P]; None is all."""
        return None

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image_tokens [B, N, W * (1 + K)] of pixels float32 [B, 3, S, S]."""
        visual = self.visual
        hidden = F.linear(patches(pixels, self.config).flatten(2), self.embed_weight, visual.patch_embed.proj.bias)
        hidden = self.positioned(hidden)
        mergers, deep = self.deepstack(), []
        for number, block in enumerate(visual.blocks):
            hidden = hidden + self._attention(block.attn, block.norm1(hidden), self.attended(number))
            hidden = hidden + block.mlp(block.norm2(hidden))
            if number in mergers:
                deep.append(self.merged(mergers[number], hidden))
        return torch.cat([self.merged(visual.merger, hidden), *deep], dim=-1)

    def _attention(self, attention: Any, hidden: Tensor, attended: Tensor | None) -> Tensor:
        split = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = (states * self.cos + rotate_half(states) * self.sin for states in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, attended, scale=attention.scaling)
        projected: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def _keep(self, name: str, value: Tensor) -> None:
        """Keep a constant of the graph."""
        self.register_buffer(name, value.detach().clone(), persistent=False)


def grid_positions(side: int) -> Tensor:
    """Return positions in time, height and width of a square of tokens, int64 [3, side^2].

    All have one time. The token behind them comes behind the larger side.
    """
    places = torch.arange(side)
    return torch.stack([torch.zeros(side**2).long(), places.repeat_interleave(side), places.repeat(side)])


def patches(pixels: Tensor, config: Any) -> Tensor:
    """Return the patches [B, N * merge^2, C, P, P] of pixels [B, C, S, S], those of one token beside each other."""
    patch, merge = int(config.patch_size), int(config.spatial_merge_size)
    cut = pixels.unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4)
