"""Prompts that a graph gives to the language model behind it, as token ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NO_TOKEN = -1
"""Pads texts and prompts. No vocabulary has such an id, so that no token of a prompt is taken for padding."""


def padded(ids: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Return ids with padding behind them."""
    return (*ids, *[NO_TOKEN] * (length - len(ids)))


class Constants(nn.Module):
    """The same ids for every item of a batch."""

    def __init__(self, *given: tuple[int, ...]) -> None:
        super().__init__()
        self.given = given

    def forward(self, items: Tensor) -> tuple[Tensor, ...]:
        """Return int64 [B, N] for each N ids that are given. items: any tensor [B, ...]."""
        return tuple(torch.tensor(ids, device=items.device).expand(items.shape[0], -1) for ids in self.given)
