"""MagicLens: a transformer over an image's and a text's embedding, and attention pooling (arXiv 2403.19651).

Follows `model.py` and `layers.py` of google-deepmind/magiclens. Parameter names and shapes are those of its released
checkpoints, with dots for slashes: a projection has a matrix per head, [D, N, H].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LAYER_NORM_EPS = 1e-6
_LOGIT_CAP = 50.0
_INVERSE_SOFTPLUS_OF_0 = 1.442695041


@dataclass(frozen=True)
class MagicLensSize:
    """The sizes of a head. dim: D. heads: N, in every layer. hidden: of a feed-forward. pooled: of the pooling's."""

    dim: int
    layers: int
    heads: int
    hidden: int
    pooled: int

    @staticmethod
    def released(dim: int) -> MagicLensSize:
        """Return the sizes of MagicLens-Base (D=512) and -Large (D=768), or in their proportions."""
        return MagicLensSize(dim, layers=4, heads=16 if dim == 768 else 8, hidden=4 * dim, pooled=4 * dim)


class MagicLens(nn.Module):
    """Fuses the two embeddings of a query, or of a target, whose text is empty."""

    def __init__(self, size: MagicLensSize) -> None:
        super().__init__()
        self.multimodal_encoder = nn.ModuleDict({f"x_layers_{layer}": _Layer(size) for layer in range(size.layers)})
        self.contrastive_multimodal_pooler = _Pooler(size)

    def forward(self, image_embedding: Tensor, text_embedding: Tensor) -> Tensor:
        """Return the L2-normalised embedding [B, D] of two unnormalised embeddings [B, D]."""
        tokens = torch.stack([image_embedding, text_embedding], dim=1)
        for layer in self.multimodal_encoder.values():
            tokens = layer(tokens)
        return F.normalize(self.contrastive_multimodal_pooler(tokens), dim=-1)


class NullTextMagicLens(nn.Module):
    """MagicLens with the embedding of the empty text as a constant: no text encoder runs for a gallery."""

    null_text: Tensor

    def __init__(self, head: MagicLens, null_text: Tensor) -> None:
        """null_text: the unnormalised text embedding of "", float32 [1, D]."""
        super().__init__()
        self.head = head
        # Computed, so its last bits are the CPU's: it is a constant of the graph, and not among the weights.
        self.register_buffer("null_text", null_text, persistent=False)

    def forward(self, image_embedding: Tensor) -> Tensor:
        """Return gallery embeddings [B, D] of unnormalised image embeddings [B, D]."""
        target: Tensor = self.head(image_embedding, self.null_text.expand(image_embedding.shape[0], -1))
        return target


class _LayerNorm(nn.Module):
    """A layer norm that stores its scale less 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], 1 + self.scale, self.bias, _LAYER_NORM_EPS)


class _Heads(nn.Module):
    """The projection of tokens [B, T, D] to the heads [B, N, T, H]."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(dim, heads, width) / math.sqrt(dim))
        self.b = nn.Parameter(torch.zeros(heads, width))

    def forward(self, tokens: Tensor) -> Tensor:
        projected = F.linear(tokens, self.w.flatten(1).T, self.b.flatten())
        return projected.unflatten(-1, self.b.shape).transpose(1, 2)


class _Post(nn.Module):
    """The projection of the heads [B, N, T, H] back to tokens [B, T, D]."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(dim, heads, width) / math.sqrt(heads * width))
        self.b = nn.Parameter(torch.zeros(dim))

    def forward(self, heads: Tensor) -> Tensor:
        return F.linear(heads.transpose(1, 2).flatten(2), self.w.flatten(1), self.b)


class _PerDimScale(nn.Module):
    """A learned factor per feature of a head; at 0 it is that of ordinary attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.per_dim_scale = nn.Parameter(torch.ones(width))

    def forward(self, query: Tensor) -> Tensor:
        return query * F.softplus(self.per_dim_scale) * (_INVERSE_SOFTPLUS_OF_0 / math.sqrt(query.shape[-1]))


class _Attention(nn.Module):
    """Attention whose logits are capped by a tanh."""

    def __init__(self, dim: int, heads: int, width: int, *, scaled_per_dim: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (_Heads(dim, heads, width) for _ in range(3))
        self.post = _Post(dim, heads, width)
        self.per_dim_scale = _PerDimScale(width) if scaled_per_dim else None

    def forward(self, asking: Tensor, tokens: Tensor) -> Tensor:
        query = self.query(asking)
        query = query / math.sqrt(query.shape[-1]) if self.per_dim_scale is None else self.per_dim_scale(query)
        logits = _LOGIT_CAP * torch.tanh(query @ self.key(tokens).transpose(-1, -2) / _LOGIT_CAP)
        read: Tensor = self.post(logits.softmax(dim=-1) @ self.value(tokens))
        return read


class _Linear(nn.Module):
    """A linear layer as two modules, `linear.w` [inputs, outputs] and `bias.b`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.ParameterDict({"w": nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))})
        self.bias = nn.ParameterDict({"b": nn.Parameter(torch.zeros(outputs))})

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.linear["w"].T, self.bias["b"])


class _FeedForward(nn.Module):
    def __init__(self, size: MagicLensSize) -> None:
        super().__init__()
        self.layer_norm = _LayerNorm(size.dim)
        self.ffn_layer1 = _Linear(size.dim, size.hidden)
        self.ffn_layer2 = _Linear(size.hidden, size.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        inner = F.relu(self.ffn_layer1(self.layer_norm(tokens)))
        added: Tensor = tokens + self.ffn_layer2(inner)
        return added


class _Layer(nn.Module):
    def __init__(self, size: MagicLensSize) -> None:
        super().__init__()
        self.layer_norm = _LayerNorm(size.dim)
        self.self_attention = _Attention(size.dim, size.heads, size.dim // size.heads, scaled_per_dim=False)
        self.ff_layer = _FeedForward(size)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.layer_norm(tokens)
        fused: Tensor = self.ff_layer(tokens + self.self_attention(normed, normed))
        return fused


class _Pooler(nn.Module):
    """A learned query reads the two tokens."""

    def __init__(self, size: MagicLensSize) -> None:
        super().__init__()
        self.pooling_attn_query = nn.Parameter(torch.randn(1, size.dim) / math.sqrt(size.dim))
        self.pool_attn = _Attention(size.dim, size.heads, size.pooled // size.heads, scaled_per_dim=True)
        self.pool_attn_ln = _LayerNorm(size.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.pooling_attn_query.expand(tokens.shape[0], 1, -1)
        pooled: Tensor = self.pool_attn_ln(self.pool_attn(query, tokens))
        return pooled[:, 0]
