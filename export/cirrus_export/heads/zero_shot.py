"""Heads without weights: CLIP's own embeddings, alone or summed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Normalise(nn.Module):
    """The embedding itself, L2-normalised."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Return float32 [B, D] of unnormalised [B, D]."""
        return F.normalize(embedding, dim=-1)


class WeightedSum(nn.Module):
    """(1 - w) * image + w * text of the two normalised embeddings; the image alone where the text is empty."""

    null_token_ids: Tensor

    def __init__(self, text_weight: float, null_token_ids: Tensor) -> None:
        """null_token_ids: the empty text, int64 [1, T]."""
        super().__init__()
        self.text_weight = text_weight
        self.register_buffer("null_token_ids", null_token_ids)

    def forward(self, image_embedding: Tensor, text_embedding: Tensor, token_ids: Tensor) -> Tensor:
        """Return the normalised query [B, D] of unnormalised embeddings [B, D] and token ids [B, T]."""
        null_token_ids = self.null_token_ids[:, : token_ids.shape[1]]
        has_text = (token_ids != null_token_ids).any(dim=-1, keepdim=True).to(image_embedding.dtype)
        text_weight = self.text_weight * has_text
        image = F.normalize(image_embedding, dim=-1)
        text = F.normalize(text_embedding, dim=-1)
        return F.normalize((1 - text_weight) * image + text_weight * text, dim=-1)
