"""Heads without weights: CLIP's own embeddings, alone or summed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Normalise(nn.Module):
    """The embedding itself, L2-normalised."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Return float32 [B, D] of unnormalised [B, D]."""
        return F.normalize(embedding, dim=-1)


class _HasText(nn.Module):
    """Tells a text from the empty one."""

    null_token_ids: Tensor

    def __init__(self, null_token_ids: Tensor) -> None:
        """null_token_ids: the empty text, int64 [1, T]."""
        super().__init__()
        self.register_buffer("null_token_ids", null_token_ids)

    def has_text(self, token_ids: Tensor) -> Tensor:
        """Return 1 for each text that is not empty, else 0: float32 [B, 1] of token ids [B, T]."""
        null_token_ids = self.null_token_ids[:, : token_ids.shape[1]]
        return (token_ids != null_token_ids).any(dim=-1, keepdim=True).float()


class PlainSum(_HasText):
    """image + text as the towers give them; the image alone where the text is empty (BGE-VL)."""

    def forward(self, image_embedding: Tensor, text_embedding: Tensor, token_ids: Tensor) -> Tensor:
        """Return the normalised query [B, D] of unnormalised embeddings [B, D] and token ids [B, T]."""
        return F.normalize(image_embedding + self.has_text(token_ids) * text_embedding, dim=-1)


class WeightedSum(_HasText):
    """(1 - w) * image + w * text of the two normalised embeddings; the image alone where the text is empty."""

    def __init__(self, text_weight: float, null_token_ids: Tensor) -> None:
        """null_token_ids: the empty text, int64 [1, T]."""
        super().__init__(null_token_ids)
        self.text_weight = text_weight

    def forward(self, image_embedding: Tensor, text_embedding: Tensor, token_ids: Tensor) -> Tensor:
        """Return the normalised query [B, D] of unnormalised embeddings [B, D] and token ids [B, T]."""
        text_weight = self.text_weight * self.has_text(token_ids)
        image = F.normalize(image_embedding, dim=-1)
        text = F.normalize(text_embedding, dim=-1)
        return F.normalize((1 - text_weight) * image + text_weight * text, dim=-1)
