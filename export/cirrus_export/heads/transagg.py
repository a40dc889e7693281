"""TransAgg: the query head that fuses every image and text token (arXiv 2306.07272)."""

from __future__ import annotations

from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_export.backbones.backbone import TextToken, at_end_of_text


class PadMask(StrEnum):
    """How padding text tokens are kept out of the fusion's attention.

    The released code hands `nn.TransformerEncoder` a *float* mask of ones and zeros. Under `eval()` and
    `no_grad()` current torch takes that for a boolean mask, so padding is ignored: BOOL, the semantics of
    the published evaluation. In training (and under `torch.export`) the same tensor is *added* to the
    attention logits, so padding is attended more: ADDITIVE.
    """

    BOOL = "bool"
    ADDITIVE = "additive"


class TransAgg(nn.Module):
    """Compose image and text features into one query embedding.

    Follows Code-kunkun/ZS-CIR `model/model.py` (and its copy in baohl00/UNION_for_IGROT): a pre-norm
    transformer over [text tokens; separator; image tokens], its image-CLS and text-EOT outputs mixed by an
    MLP, and three raw (unbounded) weights over the text, mixed and image vectors. Parameter names are the
    released checkpoints'. The paper's Section 3 describes the weights as a softmax; the released code has none.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int = 2,
        dropout: float = 0.1,
        text_token: TextToken = TextToken.END_OF_TEXT,
        pad_mask: PadMask = PadMask.BOOL,
    ) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            dim, nhead=8, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.fusion = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        if pad_mask is PadMask.ADDITIVE:
            for fused in self.fusion.layers:
                fused.activation_relu_or_gelu = 0  # no fast path, which would take the mask for a boolean one
        self.combiner_layer = nn.Linear(2 * dim, 8 * dim)
        self.weighted_layer = nn.Linear(dim, 3)
        self.output_layer = nn.Linear(8 * dim, dim)
        self.sep_token = nn.Parameter(torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(dropout)
        self.text_token = text_token
        self.pad_mask = pad_mask

    def forward(
        self,
        image_embedding: Tensor,
        image_tokens: Tensor,
        text_embedding: Tensor,
        text_tokens: Tensor,
        token_ids: Tensor,
    ) -> Tensor:
        """Return the L2-normalised query embedding, float32 [B, D].

        image_embedding, text_embedding: [B, D], image_tokens: [B, N, D] with CLS first,
        text_tokens: [B, T, D], none of them normalised; token_ids: int64 [B, T], 0 is padding.
        """
        separator = self.sep_token.expand(token_ids.shape[0], -1, -1)
        sequence = torch.cat((text_tokens, separator, image_tokens), dim=1)
        fused = self.fusion(sequence, src_key_padding_mask=self._key_padding_mask(token_ids, image_tokens))

        fused_text = fused[:, 0] if self.text_token is TextToken.FIRST else at_end_of_text(fused, token_ids)
        fused_image = fused[:, token_ids.shape[1] + 1]

        mixed = self.combiner_layer(torch.cat((fused_image, fused_text), dim=-1))
        mixed = self.output_layer(self.dropout(F.relu(mixed)))
        weights = self.weighted_layer(mixed)
        query = weights[:, 0:1] * text_embedding + weights[:, 1:2] * mixed + weights[:, 2:3] * image_embedding
        return F.normalize(query, dim=-1)

    def _key_padding_mask(self, token_ids: Tensor, image_tokens: Tensor) -> Tensor:
        unpadded = torch.zeros(
            image_tokens.shape[0], image_tokens.shape[1] + 1, dtype=torch.bool, device=token_ids.device
        )
        is_padding = torch.cat((token_ids == 0, unpadded), dim=1)
        if self.pad_mask is PadMask.ADDITIVE:
            return is_padding.to(image_tokens.dtype)
        return is_padding
