"""What a backbone offers to recipes.

    Backbone                an image encoder, its preprocessing, and a text tokenizer
    └── PooledBackbone      one embedding per image and one per text, in one space
        └── TokenBackbone   every image and text token, projected into that space
            └── WordBackbone    the text tower from word embeddings on

A recipe asks for the least that it needs (`require`), so that it works on every family that has it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from cirrus_client.errors import ExportError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_client.names import GraphName
from cirrus_client.tokenizer import TextCleaning, TokenizerSpec
from cirrus_export.graph import Call, Graph, pixels, text_axis, token_ids, vector, vectors

_CUTS = (16, 32)
"""Few lengths, so that many requests have the same and share a batch. Most edits have under 16 tokens."""


class TextToken(StrEnum):
    """Which token stands for the whole text: CLIP's end of text, which has the largest id, or BERT's first."""

    END_OF_TEXT = "end_of_text"
    FIRST = "first"


class Activation(StrEnum):
    """The function inside a CLIP's feed-forward layers, which its weights do not show: x sigmoid(1.702 x), or GELU."""

    QUICK_GELU = "quick_gelu"
    GELU = "gelu"


@dataclass(frozen=True)
class Prompt:
    """How a recipe words a text.

    template: the prompt, in which `{text}` is the text. null_text: the prompt of an absent text. cleaning: replaces the
    tokenizer's own cleaning, where the method has another. suffix_ids, cut_ids: see `TokenizerSpec`.
    """

    template: str = "{text}"
    null_text: str = ""
    cleaning: TextCleaning | None = None
    suffix_ids: tuple[int, ...] = ()
    cut_ids: tuple[int, ...] = ()

    def spec(
        self,
        *,
        context_length: int,
        start_id: int | None,
        end_id: int | None,
        cleaning: TextCleaning,
        pad_id: int = 0,
    ) -> TokenizerSpec:
        """Return how a tokenizer is used with this prompt. cleaning: the tokenizer's own."""
        return TokenizerSpec(
            context_length=context_length,
            start_id=start_id,
            end_id=end_id,
            pad_id=pad_id,
            cleaning=self.cleaning or cleaning,
            template=self.template,
            null_text=self.null_text,
            suffix_ids=self.suffix_ids,
            cut_ids=self.cut_ids,
        )


class Backbone(nn.Module, ABC):
    """A frozen image encoder, and everything about it that a query and a gallery must share.

    label, offers: the family, and what it gives to a recipe, for messages. activation: part of the space where the
    weights and the architecture's name leave it open; else None. reads_padding: False if the padding
    behind a text changes nothing that is computed for its tokens, so that it may be cut off.
    """

    label: ClassVar[str]
    offers: ClassVar[str] = "an image encoder"
    activation: Activation | None = None
    reads_padding: ClassVar[bool] = True

    @property
    @abstractmethod
    def preprocess(self) -> PreprocessSpec:
        """How the backbone's trainers turned an image into pixels. A recipe may narrow it."""

    @property
    @abstractmethod
    def vision(self) -> nn.Module:
        """The module whose weights determine what an image becomes."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Number of text tokens T."""

    @abstractmethod
    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """Write `tokenizer.json` into root and return how to use it with a recipe's prompt."""

    @abstractmethod
    def vision_graph(self) -> Graph:
        """Return the image encoder as a graph, from pixels to unnormalised outputs."""

    @property
    def image_size_px(self) -> int:
        """Side of the square input image."""
        return self.preprocess.size_px

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """Lengths T to which a batch of texts may be cut, the shortest first: the context alone if padding is read."""
        shorter = () if self.reads_padding else (length for length in _CUTS if length < self.context_length)
        return (*shorter, self.context_length)


class PooledBackbone(Backbone):
    """Two towers that give one embedding per image and one per text, in one space."""

    offers = "one embedding per image and per text"

    @property
    @abstractmethod
    def pooling(self) -> str:
        """How an image becomes one embedding, in words. Part of the space's fingerprint."""

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
        """The token ids of the empty text, int64 [1, T]."""

    @abstractmethod
    def embed_image(self, pixels: Tensor) -> Tensor:
        """Return unnormalised image embeddings [B, D] of pixels float32 [B, 3, H, W]."""

    @abstractmethod
    def embed_text(self, token_ids: Tensor) -> Tensor:
        """Return unnormalised text embeddings [B, D] of token ids int64 [B, T]."""

    def embed_gallery_image(self, pixels: Tensor) -> Tensor:
        """Return what `embed_image` does. A family may leave out work that only other tokens need."""
        return self.embed_image(pixels)

    def vision_graph(self) -> Graph:
        """Return the image tower as a graph, from pixels to `image_embedding` [B, D]."""
        return Graph(
            GraphName.VISION_ENCODER,
            Call(self.embed_image, self.vision),
            inputs=(pixels(self.image_size_px),),
            outputs=(vector("image_embedding", self.dim),),
        )

    def text_graph(self, lengths: tuple[int, ...]) -> Graph:
        """Return the text tower as a graph, from token ids to `text_embedding` [B, D].

        lengths: what the text axis may be, some of `text_lengths`.
        """
        return Graph(
            GraphName.TEXT_ENCODER,
            Call(self.embed_text, self.text),
            inputs=(token_ids(lengths),),
            outputs=(vector("text_embedding", self.dim),),
            text_lengths=lengths,
        )


class TokenBackbone(PooledBackbone):
    """Two towers that also show every token, projected into the shared space and unnormalised."""

    offers = "every token of an image and a text"
    text_token: ClassVar[TextToken]

    @property
    @abstractmethod
    def num_image_tokens(self) -> int:
        """Number of image tokens N, the CLS token included."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (image_embedding [B, D], image_tokens [B, N, D]) of pixels float32 [B, 3, H, W]."""

    @abstractmethod
    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (text_embedding [B, D], text_tokens [B, T, D]) of token ids int64 [B, T]."""

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Return the embedding of `encode_image` alone."""
        return self.encode_image(pixels)[0]

    def embed_text(self, token_ids: Tensor) -> Tensor:
        """Return the embedding of `encode_text` alone."""
        return self.encode_text(token_ids)[0]

    def vision_graph(self) -> Graph:
        """Return the image tower as a graph, from pixels to `image_embedding` [B, D] and `image_tokens` [B, N, D]."""
        return Graph(
            GraphName.VISION_ENCODER,
            Call(self.encode_image, self.vision),
            inputs=(pixels(self.image_size_px),),
            outputs=(vector("image_embedding", self.dim), vectors("image_tokens", self.num_image_tokens, self.dim)),
        )

    def text_graph(self, lengths: tuple[int, ...]) -> Graph:
        """Return the text tower as a graph, from token ids to `text_embedding` [B, D] and `text_tokens` [B, T, D].

        lengths: what the text axis may be, some of `text_lengths`.
        """
        return Graph(
            GraphName.TEXT_ENCODER,
            Call(self.encode_text, self.text),
            inputs=(token_ids(lengths),),
            outputs=(vector("text_embedding", self.dim), vectors("text_tokens", text_axis(lengths), self.dim)),
            text_lengths=lengths,
        )


class WordBackbone(TokenBackbone):
    """Two towers whose text tower can be entered at its word embeddings and left before its projection."""

    offers = "a text tower that takes word embeddings"

    @property
    @abstractmethod
    def word_width(self) -> int:
        """Width W of a word embedding, and of a text token before the projection."""

    @property
    @abstractmethod
    def text_transformer(self) -> nn.Module:
        """The text tower's transformer, which Retrieval-DPO trains alone."""

    @abstractmethod
    def word_id(self, word: str) -> int:
        """Return the first token id of a word."""

    @abstractmethod
    def embed_words(self, token_ids: Tensor) -> Tensor:
        """Return the word embeddings [B, T, W] of token ids int64 [B, T]."""

    @abstractmethod
    def encode_word_embeddings(self, words: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `encode_text` does with word embeddings [B, T, W]; token_ids say where the text ends."""

    @abstractmethod
    def encode_text_unprojected(self, token_ids: Tensor) -> Tensor:
        """Return the end-of-text token before the projection, [B, W], of token ids int64 [B, T]."""


B = TypeVar("B", bound=Backbone)


def require(backbone: Backbone, kind: type[B], recipe: str) -> B:
    """Return the backbone if it is of the kind that a recipe needs. Raises ExportError."""
    check_kind(type(backbone), (kind,), recipe)
    assert isinstance(backbone, kind)
    return backbone


def check_kind(found: type[Backbone], needed: tuple[type[Backbone], ...], recipe: str) -> None:
    """Raise ExportError if a recipe can't work on a kind of backbone. Nothing has to be built or fetched for it."""
    if not issubclass(found, needed):
        wanted = " or ".join(dict.fromkeys(kind.offers for kind in needed))
        raise ExportError(
            f"recipe {recipe} needs {wanted}, and a {found.label} backbone gives {found.offers}: name another "
            "--backbone, or another --recipe"
        )


def at_end_of_text(tokens: Tensor, token_ids: Tensor) -> Tensor:
    """Return the token [B, D] of [B, L, D] where CLIP's text ends, at the largest of int64 [B, T] token ids; T <= L."""
    end_of_text = token_ids.argmax(dim=-1)[:, None, None].expand(-1, 1, tokens.shape[-1])
    return tokens.gather(1, end_of_text).squeeze(1)
