"""Prompts that a graph gives to the language model behind it, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NO_TOKEN = -1
"""Pads texts and prompts. No vocabulary has such an id, so that no token of a prompt is taken for padding."""


def padded(ids: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Return ids with padding behind them."""
    return (*ids, *[NO_TOKEN] * (length - len(ids)))


@dataclass(frozen=True)
class Ending:
    """The last ids of every text, `replaced`, and the ids to put in their place, no more of them."""

    replaced: tuple[int, ...]
    ids: tuple[int, ...]

    def put(self, token_ids: Tensor) -> Tensor:
        """Return texts with the other ending, int64 [B, T]. token_ids: int64 [B, T], padded with NO_TOKEN behind."""
        count = len(self.replaced)
        ending = torch.tensor(padded(self.ids, count), device=token_ids.device)
        length = (token_ids >= 0).sum(dim=1, keepdim=True)
        place = torch.arange(token_ids.shape[1], device=token_ids.device) - (length - count)
        ended = ending[place.clamp(0, count - 1)]
        return torch.where(place < 0, token_ids, ended.where(place < count, NO_TOKEN))


class Constants(nn.Module):
    """The same ids for every item of a batch."""

    def __init__(self, *given: tuple[int, ...]) -> None:
        super().__init__()
        self.given = given

    def forward(self, items: Tensor) -> tuple[Tensor, ...]:
        """Return int64 [B, N] for each N ids that are given. items: any tensor [B, ...]."""
        return tuple(torch.tensor(ids, device=items.device).expand(items.shape[0], -1) for ids in self.given)
