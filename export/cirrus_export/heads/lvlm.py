"""What CIR-LVLM (arXiv 2412.11087) puts around its vision tower and language model.

The paper leaves open the distance by which soft prompts are chosen and the weights of its mean over the tokens.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn


class Pooling(StrEnum):
    """How an embedding is made of a sequence's hidden states.

    POSITION_WEIGHTED: a mean in which a token weighs its place, since later tokens have read more (SGPT, arXiv
    2202.08904).
    """

    POSITION_WEIGHTED = "position-weighted mean"
    MEAN = "mean"
    LAST = "last token"


def pooled(hidden: Tensor, seen: Tensor, pooling: Pooling) -> Tensor:
    """Return embeddings [B, W] of hidden states [B, L, W]. seen: bool [B, L], True first and False for padding."""
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    if pooling is Pooling.LAST:
        seen = seen & (places == seen.sum(dim=1, keepdim=True))
    weights = seen.to(hidden.dtype)
    if pooling is Pooling.POSITION_WEIGHTED:
        weights = weights * places
    return (hidden * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def instance(image_tokens: Tensor, text: Tensor, is_text: Tensor) -> Tensor:
    """Return what soft prompts are chosen by, [B, W]: the mean of the visual tokens plus that of the words.

    text: word embeddings [B, T, W]. is_text: bool [B, T], False for padding.
    """
    weights = is_text.to(text.dtype)[..., None]
    return image_tokens.mean(dim=1) + (text * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class Connector(nn.Module):
    """Learnable queries that read the vision tower's tokens by cross-attention, projected to the language model."""

    def __init__(self, vision_width: int, width: int, num_queries: int, num_heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, num_queries, width) * 0.02)
        self.project = nn.Linear(vision_width, width)
        self.norm_tokens = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [B, Q, W] of vision tokens [B, N, V]."""
        memory = self.norm_tokens(self.project(tokens))
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        read: Tensor = self.norm(queries + self.attention(queries, memory, memory, need_weights=False)[0])
        return read


class PromptPool(nn.Module):
    """M soft prompts of L_p vectors under M keys; an instance takes the K whose keys have the largest cosine."""

    def __init__(self, pool: int, length: int, chosen: int, width: int) -> None:
        """pool, length, chosen: M, L_p and K."""
        super().__init__()
        self.keys = nn.Parameter(torch.randn(pool, width) * 0.02)
        self.values = nn.Parameter(torch.randn(pool, length, width) * 0.02)
        self.chosen = chosen

    def forward(self, instance: Tensor) -> Tensor:
        """Return [B, K * L_p, W] of instances [B, W]; the best match comes first."""
        scores = nn.functional.normalize(instance, dim=-1) @ nn.functional.normalize(self.keys, dim=-1).T
        places = scores.topk(self.chosen, dim=-1).indices
        return self.values[places].flatten(1, 2)


class PromptedLanguage(nn.Module):
    """The language model over [visual tokens; task prompt; chosen soft prompts; text], pooled and normalised.

    A prompt's padding is cut out: what follows moves to its place. So every token has the place that it would have
    without padding, for which a causal language model needs no mask.
    """

    def __init__(self, language: Any, prompts: PromptPool, pad_id: int, pooling: Pooling) -> None:
        """pad_id: of texts, may be negative."""
        super().__init__()
        self.language: Any = language
        self.prompts = prompts
        self.pad_id = pad_id
        self.pooling = pooling

    def forward(self, image_tokens: Tensor, prompt_ids: Tensor, token_ids: Tensor) -> Tensor:
        """Return embeddings [B, W].

        image_tokens: [B, Q, W]. prompt_ids, token_ids: int64 [B, P], padded with negative ids, and [B, T].
        """
        words = self.language.get_input_embeddings()
        text, is_text = words(token_ids.clamp(min=0)), token_ids != self.pad_id
        soft = self.prompts(instance(image_tokens, text, is_text))
        sequence = torch.cat([image_tokens, words(prompt_ids.clamp(min=0)), soft, text], dim=1)
        prompted = (prompt_ids >= 0).sum(dim=1, keepdim=True)
        places = torch.arange(sequence.shape[1], device=sequence.device)
        behind = places >= image_tokens.shape[1] + prompted
        taken = (places + behind * (prompt_ids.shape[1] - prompted)).clamp(max=sequence.shape[1] - 1)
        sequence = sequence.gather(1, taken[..., None].expand(-1, -1, sequence.shape[2]))
        hidden = self.language(inputs_embeds=sequence, use_cache=False).last_hidden_state
        before = image_tokens.shape[1] + prompted + soft.shape[1]
        seen = places < before + is_text.sum(dim=1, keepdim=True)
        return nn.functional.normalize(pooled(hidden, seen, self.pooling), dim=-1)


def read(model: PromptedLanguage, image_tokens: Tensor, prompt: tuple[int, ...], token_ids: Tensor | None) -> Tensor:
    """Return unnormalised embeddings [B, W] of what `PromptedLanguage` reads, one task's prompt at a time.

    image_tokens: [B, Q, W]. token_ids: int64 [B, T], or None. A text's padding comes last, where a causal model's other
    tokens can't see it, and is left out of the pooling.
    """
    batch, width = image_tokens.shape[0], image_tokens.shape[2]
    words = model.language.get_input_embeddings()
    task = words(torch.tensor(prompt, device=image_tokens.device)).expand(batch, -1, -1)
    text, is_text = image_tokens.new_empty(batch, 0, width), image_tokens.new_empty(batch, 0, dtype=torch.bool)
    if token_ids is not None:
        text, is_text = words(token_ids.clamp(min=0)), token_ids != model.pad_id
    soft = model.prompts(instance(image_tokens, text, is_text))
    sequence = torch.cat([image_tokens, task, soft, text], dim=1)
    hidden = model.language(inputs_embeds=sequence, use_cache=False).last_hidden_state
    before = is_text.new_ones(batch, sequence.shape[1] - text.shape[1])
    return pooled(hidden, torch.cat([before, is_text], dim=1), model.pooling)
