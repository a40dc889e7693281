"""Textual inversion: a small network turns an image into a word embedding of the query's prompt."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_export.backbones.backbone import WordBackbone


class Replaced(StrEnum):
    """Which occurrences of the placeholder become the image's word: SEARLE's and Pic2Word's code, or LinCIR's."""

    FIRST = "first"
    ALL = "all"


class Phi(nn.Module):
    """SEARLE's and LinCIR's phi (miccunifi/SEARLE `src/phi.py`): three linear layers with exact GELU."""

    def __init__(self, dim: int, hidden: int, word_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, word_width),
        )

    def forward(self, image_embedding: Tensor) -> Tensor:
        """Return word embeddings [B, W] of unnormalised image embeddings [B, D]."""
        words: Tensor = self.layers(image_embedding)
        return words


class Im2Text(nn.Module):
    """Pic2Word's mapping network (google-research/composed_image_retrieval `model/model.py`): ReLU, 512 wide."""

    def __init__(self, dim: int, hidden: int, word_width: int, *, num_layers: int = 2) -> None:
        super().__init__()
        widths = [dim, *[hidden] * num_layers]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(before, after), nn.Dropout(0.1), nn.ReLU()) for before, after in pairwise(widths))
        )
        self.fc_out = nn.Linear(hidden, word_width)

    def forward(self, image_embedding: Tensor) -> Tensor:
        """Return word embeddings [B, W] of unnormalised image embeddings [B, D]."""
        words: Tensor = self.fc_out(self.layers(image_embedding))
        return words


class PseudoWordQuery(nn.Module):
    """CLIP's text tower over a prompt in which an image's word replaces the placeholder.

    The released codes find the placeholder with `nonzero`, whose output size depends on the data. A mask over the token
    ids is the same function with fixed shapes, which can be exported.
    """

    def __init__(
        self,
        backbone: WordBackbone,
        network: nn.Module,
        *,
        placeholder_id: int,
        replaced: Replaced,
        normalise_input: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.network = network
        self.placeholder_id = placeholder_id
        self.replaced = replaced
        self.normalise_input = normalise_input

    def forward(self, image_embedding: Tensor, token_ids: Tensor) -> Tensor:
        """Return L2-normalised queries [B, D] of unnormalised image embeddings [B, D] and int64 token ids [B, T]."""
        if self.normalise_input:
            image_embedding = F.normalize(image_embedding, dim=-1)
        is_word = token_ids == self.placeholder_id
        if self.replaced is Replaced.FIRST:
            is_word = is_word & (is_word.long().cumsum(dim=1) == 1)
        words = self.backbone.embed_words(token_ids)
        words = torch.where(is_word[..., None], self.network(image_embedding)[:, None], words)
        return F.normalize(self.backbone.encode_word_embeddings(words, token_ids)[0], dim=-1)


class PromptWithoutWord(nn.Module):
    """CLIP's text tower over the prompt of a query that has no image.

    The placeholder and the words that join it to the text are taken out, so "a photo of $ that is red" becomes "a photo
    of is red". The prompt of an absent text has no such words, and loses the placeholder alone.
    """

    def __init__(self, backbone: WordBackbone, *, place: int, words: int) -> None:
        """place: position of the placeholder. words: how many tokens go, the placeholder's included."""
        super().__init__()
        self.backbone = backbone
        self.place = place
        self.words = words

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return L2-normalised queries [B, D] of int64 token ids [B, T]."""
        is_null = token_ids.argmax(dim=1, keepdim=True) == self.place + 1
        kept = torch.where(is_null, self._without(token_ids, 1), self._without(token_ids, self.words))
        return F.normalize(self.backbone.embed_text(kept), dim=-1)

    def _without(self, token_ids: Tensor, count: int) -> Tensor:
        padding = torch.zeros_like(token_ids[:, :count])
        return torch.cat([token_ids[:, : self.place], token_ids[:, self.place + count :], padding], dim=1)
