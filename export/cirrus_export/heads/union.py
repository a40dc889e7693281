"""UNION: the target head that fuses an image with the null text (arXiv 2511.22253)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack


class Union(nn.Module):
    """Weigh an image embedding against a text embedding; for a gallery the text is the empty string.

    Follows `union_features` of baohl00/UNION_for_IGROT `model.py`: a four-layer T5 encoder stack over the two
    tokens [image; text], a gate MLP over both outputs, and w * image + (1 - w) * text. The gate's last layer is
    linear, so w is not bounded. The paper's Section 3 describes a two-layer transformer with pooling and two
    weights; checkpoints come from the released form. Parameter names are the released checkpoints'.
    """

    def __init__(self, dim: int, *, num_heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.t5_layers = T5Stack(
            T5Config(
                vocab_size=2,
                d_model=dim,
                d_kv=64,
                d_ff=2048,
                num_layers=4,
                num_heads=num_heads,
                feed_forward_proj="relu",
                dropout_rate=dropout,
            )
        )
        del self.t5_layers.embed_tokens  # the stack is only ever fed embeddings
        self.union_weighted_layer = nn.Sequential(
            nn.Linear(2 * dim, 4 * dim),
            nn.Dropout(dropout / 2),
            nn.Sigmoid(),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout / 2),
            nn.Sigmoid(),
            nn.Linear(dim, 1),
        )

    def forward(self, image_embedding: Tensor, text_embedding: Tensor) -> Tensor:
        """Return the L2-normalised union embedding, float32 [B, D], of two unnormalised [B, D] embeddings."""
        pair = torch.stack((image_embedding, text_embedding), dim=1)
        fused = self.t5_layers(inputs_embeds=pair, use_cache=False).last_hidden_state
        image_weight = self.union_weighted_layer(fused.flatten(1))
        union = image_weight * image_embedding + (1 - image_weight) * text_embedding
        return F.normalize(union, dim=-1)


class NullTextUnion(nn.Module):
    """UNION with the embedding of the empty text as a constant: no text encoder runs for a gallery."""

    null_text: Tensor

    def __init__(self, union: Union, null_text: Tensor) -> None:
        """null_text: the unnormalised text embedding of "", float32 [1, D]."""
        super().__init__()
        self.union = union
        # Computed, so its last bits are the CPU's: it is a constant of the graph, and not among the weights.
        self.register_buffer("null_text", null_text, persistent=False)

    def forward(self, image_embedding: Tensor) -> Tensor:
        """Return gallery embeddings [B, D] of unnormalised image embeddings [B, D]."""
        target: Tensor = self.union(image_embedding, self.null_text.expand(image_embedding.shape[0], -1))
        return target


class QueryWithUnion(nn.Module):
    """A query head to whose query a share of the UNION of its image and text is added.

    `fiq_generate_val_predictions` of baohl00/UNION_for_IGROT `data_submission/fiq_test_submission.py`, with 0.1.
    """

    def __init__(self, query_head: nn.Module, union: Union, weight: float) -> None:
        super().__init__()
        self.query_head = query_head
        self.union = union
        self.weight = weight

    def forward(
        self,
        image_embedding: Tensor,
        image_tokens: Tensor,
        text_embedding: Tensor,
        text_tokens: Tensor,
        token_ids: Tensor,
    ) -> Tensor:
        """Return the L2-normalised query embedding, float32 [B, D], of what `TransAgg.forward` takes."""
        query = self.query_head(image_embedding, image_tokens, text_embedding, text_tokens, token_ids)
        return F.normalize(query + self.weight * self.union(image_embedding, text_embedding), dim=-1)
