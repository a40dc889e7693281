"""A Qwen-VL's vision tower and language model for images of one size, with every grid and position a constant.

The same functions as transformers' own models, whose code reads the sizes of images from tensors and can't be exported
(Qwen2-VL: arXiv 2409.12191; Qwen3-VL: arXiv 2511.21631).
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
    """Pixels to the tokens that the language model reads, with those of every deepstack layer behind them."""

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
    def places(self, hidden: Tensor) -> Tensor:
        """Return the patches [B, P, V] with what says where they are, besides the rotation."""

    @abstractmethod
    def merged(self, merger: Any, hidden: Tensor) -> Tensor:
        """Return [B, N, W] of [B, N * merge^2, V]: transformers' merger, for a batch."""

    def deepstack(self) -> Mapping[int, Any]:
        """Return the merger behind a block, by the block's number."""
        return {}

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image_tokens [B, N, W * (1 + K)] of pixels float32 [B, 3, S, S]."""
        visual = self.visual
        hidden = F.linear(patches(pixels, self.config).flatten(2), self.embed_weight, visual.patch_embed.proj.bias)
        hidden = self.places(hidden)
        mergers, deep = self.deepstack(), []
        for number, block in enumerate(visual.blocks):
            hidden = hidden + self._attention(block.attn, block.norm1(hidden))
            hidden = hidden + block.mlp(block.norm2(hidden))
            if number in mergers:
                deep.append(self.merged(mergers[number], hidden))
        return torch.cat([self.merged(visual.merger, hidden), *deep], dim=-1)

    def _attention(self, attention: Any, hidden: Tensor) -> Tensor:
        split = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = (states * self.cos + rotate_half(states) * self.sin for states in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
        projected: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def _keep(self, name: str, value: Tensor) -> None:
        """Keep a constant of the graph."""
        self.register_buffer(name, value.detach().clone(), persistent=False)


class LastToken(nn.Module):
    """The language model over [prompt; image; prompt; text], read at its last token, and normalised.

    Both parts of the prompt and the text are padded with negative ids. An image whose mask is negative is not there.
    Nothing attends to what is not there but itself, and it takes no positions.
    """

    axes: Tensor
    positions: Tensor

    def __init__(self, language: Any, axes: Tensor, positions: Tensor, before: int, dim: int) -> None:
        """Keep the model.

        axes: which of time, height and width each frequency of the rotation stands for, int64 [H / 2]. positions: of
        the image's tokens, see `grid_positions`, int64 [3, N]. before: how many of a prompt's ids precede the image.
        dim: how many values of the hidden state are kept.
        """
        super().__init__()
        self.language: Any = language
        self.before = before
        self.extent = int(positions.max()) + 1
        self.dim = dim
        self.register_buffer("axes", axes, persistent=False)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, image_tokens: Tensor, prompt_ids: Tensor, image_mask: Tensor, token_ids: Tensor) -> Tensor:
        """Return embeddings [B, dim].

        image_tokens: `VisionTower`'s, [B, N, W * (1 + K)]. prompt_ids, token_ids: int64 [B, P] and [B, T]. image_mask:
        int64 [B, 1], 1 or negative.
        """
        width = self.language.config.hidden_size
        image, *deepstack = image_tokens.split(width, dim=-1)
        before, behind = prompt_ids[:, : self.before], prompt_ids[:, self.before :]
        hidden = torch.cat([self._words(before), image, self._words(behind), self._words(token_ids)], dim=1)
        of_image = (image_mask > 0).expand(-1, image.shape[1])
        seen = torch.cat([before >= 0, of_image, behind >= 0, token_ids >= 0], dim=1)
        places = torch.arange(hidden.shape[1], device=hidden.device)
        causal, itself = places[:, None] >= places, places[:, None] == places
        mask = seen[:, None, None, :] & causal | itself
        cos, sin = self._rotation(before, image_mask, behind, token_ids)
        for number, layer in enumerate(self.language.layers):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=(cos, sin))
            if number < len(deepstack):
                words = behind.shape[1] + token_ids.shape[1]
                hidden = hidden + F.pad(deepstack[number], (0, 0, self.before, words))
        last = (seen * places).amax(dim=1)
        hidden = hidden.gather(1, last[:, None, None].expand(-1, 1, width)).squeeze(1)
        return F.normalize(self.language.norm(hidden)[:, : self.dim], dim=-1)

    def _words(self, token_ids: Tensor) -> Tensor:
        words: Tensor = self.language.embed_tokens(token_ids.clamp(min=0))
        return words

    def _rotation(self, before: Tensor, image_mask: Tensor, behind: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [B, L, H] of every position in time, height and width (M-RoPE)."""
        places = [
            torch.arange(ids.shape[1], device=ids.device).expand(ids.shape) for ids in (before, behind, token_ids)
        ]
        first = (before >= 0).sum(dim=1, keepdim=True)
        second = first + (image_mask > 0) * self.extent
        third = second + (behind >= 0).sum(dim=1, keepdim=True)
        axes = [
            torch.cat([places[0], first + image, second + places[1], third + places[2]], dim=1)
            for image in self.positions
        ]
        rotary = self.language.rotary_emb
        chosen = torch.stack(axes, dim=-1).index_select(-1, self.axes)
        angles = (chosen.float() * rotary.inv_freq.float()).repeat(1, 1, 2)
        return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling


class WithoutImage(nn.Module):
    """The task's prompt, and an image that is not there, for a text alone."""

    def __init__(self, prompt: tuple[int, ...], num_image_tokens: int, image_token_width: int) -> None:
        super().__init__()
        self.prompt = prompt
        self.shape = (num_image_tokens, image_token_width)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return image_tokens [B, N, W'], which are not looked at, prompt_ids int64 [B, P] and image_mask int64 [B, 1].

        The gate compares directions, so none of them is zero.
        """
        batch, device = token_ids.shape[0], token_ids.device
        prompt, mask = (torch.tensor(ids, device=device).expand(batch, -1) for ids in (self.prompt, (-1,)))
        return torch.ones(1, *self.shape, device=device).expand(batch, -1, -1), prompt, mask


def grid_positions(side: int) -> Tensor:
    """Return positions in time, height and width of a square of tokens, int64 [3, side^2].

    All have one time. The token behind them comes behind the larger side.
    """
    places = torch.arange(side)
    return torch.stack([torch.zeros(side**2).long(), places.repeat_interleave(side), places.repeat(side)])


def line_positions(count: int) -> Tensor:
    """Return the positions of tokens that are counted like words, int64 [3, count]."""
    return torch.arange(count).expand(3, -1)


def patches(pixels: Tensor, config: Any) -> Tensor:
    """Return the patches [B, N * merge^2, C, P, P] of pixels [B, C, S, S], those of one token beside each other."""
    patch, merge = int(config.patch_size), int(config.spatial_merge_size)
    cut = pixels.unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4)
