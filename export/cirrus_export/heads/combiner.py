"""CLIP4Cir's Combiner: a gated sum of image, text and a mix of the two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Combiner(nn.Module):
    """Mixes an image's and a text's embedding, and adds both with weights that sum to 1.

    Follows `combine_features` of ABaldrati/CLIP4Cir `src/combiner.py` (CVPRW 2022). Parameter names are
    those of its checkpoints.
    """

    def __init__(self, dim: int, projection: int, hidden: int) -> None:
        """dim, projection, hidden: widths of an embedding, of its projection, and of both inner layers."""
        super().__init__()
        self.text_projection_layer = nn.Linear(dim, projection)
        self.image_projection_layer = nn.Linear(dim, projection)
        self.combiner_layer = nn.Linear(2 * projection, hidden)
        self.output_layer = nn.Linear(hidden, dim)
        self.dynamic_scalar = nn.Sequential(
            nn.Linear(2 * projection, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 1), nn.Sigmoid()
        )

    def forward(self, image_embedding: Tensor, text_embedding: Tensor) -> Tensor:
        """Return the L2-normalised query [B, D] of two unnormalised embeddings [B, D]."""
        text = F.relu(self.text_projection_layer(text_embedding))
        image = F.relu(self.image_projection_layer(image_embedding))
        both = torch.cat([text, image], dim=-1)
        mixed = self.output_layer(F.relu(self.combiner_layer(both)))
        text_weight = self.dynamic_scalar(both)
        return F.normalize(mixed + text_weight * text_embedding + (1 - text_weight) * image_embedding, dim=-1)
