"""What a recipe can ask of a frozen backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from cirrus_client.tokenizer import TextCleaning, TokenizerSpec


class TextToken(StrEnum):
    """Which token stands for the whole text: CLIP's end of text, which has the largest id, or BERT's first."""

    END_OF_TEXT = "end_of_text"
    FIRST = "first"


@dataclass(frozen=True)
class Prompt:
    """How a recipe words a text: `{text}` in the template is the text, null_text stands for an absent one.

    cleaning: where it is not the tokenizer's own.
    """

    template: str = "{text}"
    null_text: str = ""
    cleaning: TextCleaning | None = None

    def spec(
        self, *, context_length: int, start_id: int, end_id: int, cleaning: TextCleaning, pad_id: int = 0
    ) -> TokenizerSpec:
        """Return how a tokenizer is used with this prompt; cleaning is the tokenizer's own."""
        return TokenizerSpec(
            context_length=context_length,
            start_id=start_id,
            end_id=end_id,
            pad_id=pad_id,
            cleaning=self.cleaning or cleaning,
            template=self.template,
            null_text=self.null_text,
        )


class Backbone(nn.Module, ABC):
    """A frozen image encoder with the text tokenizer that belongs to it."""

    label: ClassVar[str]

    @property
    @abstractmethod
    def image_size_px(self) -> int:
        """Side of the square input image."""

    @property
    @abstractmethod
    def num_image_tokens(self) -> int:
        """Number of image tokens N, the CLS token included."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Number of text tokens T."""

    @property
    @abstractmethod
    def vision(self) -> nn.Module:
        """The module whose weights determine what an image becomes."""

    @abstractmethod
    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """Write `tokenizer.json` into root and return how to use it with a recipe's prompt."""


class ImageTextBackbone(Backbone):
    """Two towers with one embedding space, which show every token, projected and unnormalised."""

    text_token: ClassVar[TextToken]

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width D of the shared embedding."""

    @property
    @abstractmethod
    def text(self) -> nn.Module:
        """The module whose weights determine what a text becomes."""

    @property
    @abstractmethod
    def null_token_ids(self) -> Tensor:
        """The empty text, int64 [1, T]: what the released code tokenizes for every gallery image."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (image_embedding [B, D], image_tokens [B, N, D]) of normalised pixels float32 [B, 3, H, W]."""

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Return `encode_image`'s embedding [B, D] alone, for galleries, without computing what only tokens need."""
        return self.encode_image(pixels)[0]

    @abstractmethod
    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (text_embedding [B, D], text_tokens [B, T, D]) of int64 [B, T] token ids."""


def at_end_of_text(tokens: Tensor, token_ids: Tensor) -> Tensor:
    """Return the token [B, D] of [B, L, D] where CLIP's text ends, at the largest of int64 [B, T] token ids; T <= L."""
    end_of_text = token_ids.argmax(dim=-1)[:, None, None].expand(-1, 1, tokens.shape[-1])
    return tokens.gather(1, end_of_text).squeeze(1)
