"""BLIP-2's Q-Former as composed retrieval uses it: 32 vectors for a target, one or two passes for a query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings


@dataclass(frozen=True)
class QFormerSize:
    """The sizes of a Q-Former; the defaults are BLIP-2's. Heads are 64 wide, as BERT's."""

    image_width: int
    num_queries: int = 32
    width: int = 768
    layers: int = 12
    inner: int = 3072
    vocabulary: int = 30523
    positions: int = 512
    cross_attention_every: int = 2
    dim: int = 256

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return max(1, self.width // 64)


class QFormer(nn.Module):
    """Learned queries that read an image, with or without a text beside them.

    Follows `Blip2QformerCirAlignPrompt` of chunmeifeng/SPRC (`inference` and `extract_target_features`, arXiv
    2310.05473). Its second pass over the sentence prompt has no image: SPRC's edited layer then sends *every* token,
    prompts too, through the text feed-forward and skips cross-attention. In transformers' Q-Former a query length
    of zero does the same.
    """

    def __init__(self, size: QFormerSize) -> None:
        super().__init__()
        self.size = size
        config = Blip2QFormerConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.inner,
            max_position_embeddings=size.positions,
            layer_norm_eps=1e-12,
            cross_attention_frequency=size.cross_attention_every,
            encoder_hidden_size=size.image_width,
            use_qformer_text_input=True,
            pad_token_id=0,
        )
        self.query_tokens = nn.Parameter(torch.empty(1, size.num_queries, size.width).normal_(std=0.02))
        self.embeddings = Blip2TextEmbeddings(config)
        self.bert = Blip2QFormerModel(config)
        self.vision_proj = nn.Linear(size.width, size.dim)
        self.text_proj = nn.Linear(size.width, size.dim)

    def target(self, image_tokens: Tensor) -> Tensor:
        """Return L2-normalised target embeddings [B, V, D] of image tokens [B, N, W]."""
        queries = self.query_tokens.expand(image_tokens.shape[0], -1, -1)
        read = self.bert(query_embeds=queries, encoder_hidden_states=image_tokens).last_hidden_state
        return F.normalize(self.vision_proj(read), dim=-1)

    def prompt(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Return the sentence prompt [B, V, H]: the first pass, learned queries over image and text."""
        return self._composed(image_tokens, token_ids)[:, : self.size.num_queries]

    def fused(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Return L2-normalised query embeddings [B, D] of one pass over image and text: the text's first token."""
        return self._said(self._composed(image_tokens, token_ids))

    def sentence(self, prompt: Tensor, token_ids: Tensor) -> Tensor:
        """Return L2-normalised query embeddings [B, D]: the second pass, a prompt [B, V, H] and the text."""
        read = self.bert(
            query_embeds=self.embeddings(token_ids, query_embeds=prompt),
            query_length=0,
            attention_mask=self._attended(token_ids),
        ).last_hidden_state
        return self._said(read)

    def matched(self, image_tokens: Tensor, prompt: Tensor, token_ids: Tensor) -> Tensor:
        """Return what the learned queries read [B, V, H] of a candidate beside a query: image, then prompt and text.

        The pass of BLIP-2's image-text matching (arXiv 2301.12597, section 3.2; `compute_itm` of LAVIS's
        `Blip2Qformer`). SPRC's sentence, the prompt [B, V, H] and the text, stands in the place of the text alone.
        """
        queries = self.query_tokens.expand(image_tokens.shape[0], -1, -1)
        read = self.bert(
            query_embeds=self.embeddings(token_ids, query_embeds=torch.cat([queries, prompt], dim=1)),
            query_length=self.size.num_queries,
            attention_mask=self._attended(token_ids, passes=2),
            encoder_hidden_states=image_tokens,
        ).last_hidden_state
        return read[:, : self.size.num_queries]

    def text(self, token_ids: Tensor) -> Tensor:
        """Return L2-normalised text embeddings [B, D] of int64 token ids [B, T]: the text alone, its first token.

        `extract_features(mode="text")` of LAVIS's `Blip2Qformer` (arXiv 2301.12597, image-text contrastive learning).
        """
        read = self.bert(
            query_embeds=self.embeddings(token_ids), query_length=0, attention_mask=(token_ids != 0).long()
        ).last_hidden_state
        return F.normalize(self.text_proj(read[:, 0]), dim=-1)

    def _composed(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Return what learned queries and text have read of an image and each other, [B, V + T, H]."""
        queries = self.query_tokens.expand(image_tokens.shape[0], -1, -1)
        read: Tensor = self.bert(
            query_embeds=self.embeddings(token_ids, query_embeds=queries),
            query_length=self.size.num_queries,
            attention_mask=self._attended(token_ids),
            encoder_hidden_states=image_tokens,
        ).last_hidden_state
        return read

    def _said(self, read: Tensor) -> Tensor:
        """Return L2-normalised embeddings [B, D] of the text's first token, behind V others."""
        return F.normalize(self.text_proj(read[:, self.size.num_queries]), dim=-1)

    def _attended(self, token_ids: Tensor, *, passes: int = 1) -> Tensor:
        """Return the mask of V tokens for each pass that is read, and of the text's own."""
        is_text = (token_ids != 0).long()
        ones = torch.ones_like(is_text[:, :1]).expand(-1, passes * self.size.num_queries)
        return torch.cat([ones, is_text], dim=1)
