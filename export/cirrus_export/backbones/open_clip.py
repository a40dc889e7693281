"""open_clip models as a frozen backbone that shows every token."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from cirrus_client.tokenizer import TokenizerSpec
from cirrus_export.backbones.backbone import ImageTextBackbone, Prompt, TextToken, at_end_of_text
from cirrus_export.backbones.clip_tokenizer import write_clip_tokenizer

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import ResidualAttentionBlock


class OpenClipBackbone(ImageTextBackbone):
    """A CLIP whose encoders return the global embedding and all tokens, projected and unnormalised.

    TransAgg's modified CLIP (Code-kunkun/ZS-CIR `model/clip/model.py`) sends every patch through `ln_post` and
    the projection, and every text token through `ln_final` and the text projection; stock encoders do so for the
    pooled token alone.
    """

    label = "CLIP"
    text_token = TextToken.END_OF_TEXT

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)

    @property
    def vision(self) -> nn.Module:
        """The vision tower."""
        visual: nn.Module = self.clip.visual
        return visual

    @property
    def text(self) -> nn.Module:
        """The whole CLIP, which holds the text tower's parts."""
        return self.clip

    @property
    def dim(self) -> int:
        """Width D of the shared embedding."""
        return int(self.clip.text_projection.shape[1])

    @property
    def image_size_px(self) -> int:
        """Side of the square input image."""
        size = self.clip.visual.image_size
        return int(size[0] if isinstance(size, tuple) else size)

    @property
    def context_length(self) -> int:
        """Number of text tokens T."""
        return int(self.clip.context_length)

    @property
    def null_token_ids(self) -> Tensor:
        """The empty text, int64 [1, T]: what the released code tokenizes for every gallery image."""
        token_ids: Tensor = SimpleTokenizer(context_length=self.context_length)([""])
        return token_ids

    @property
    def num_image_tokens(self) -> int:
        """Number of image tokens N, the CLS token included."""
        return int(self.clip.visual.positional_embedding.shape[0])

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (image_embedding [B, D], image_tokens [B, N, D]) of normalised pixels float32 [B, 3, H, W]."""
        visual = self.clip.visual
        tokens = visual.ln_post(visual.transformer(visual._embeds(pixels))) @ visual.proj
        return tokens[:, 0], tokens

    def embed_image(self, pixels: Tensor) -> Tensor:
        """See `ImageTextBackbone.embed_image`: the last block is computed for the CLS token, which alone is read."""
        visual = self.clip.visual
        *blocks, last = visual.transformer.resblocks
        if type(last) is not ResidualAttentionBlock:
            return super().embed_image(pixels)
        tokens = visual._embeds(pixels)
        for block in blocks:
            tokens = block(tokens)
        normalised = last.ln_1(tokens)
        cls = tokens[:, :1] + last.ls_1(last.attention(normalised[:, :1], normalised, normalised))
        cls = cls + last.ls_2(last.mlp(last.ln_2(cls)))
        embedding: Tensor = visual.ln_post(cls[:, 0]) @ visual.proj
        return embedding

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (text_embedding [B, D], text_tokens [B, T, D]) of int64 [B, T] token ids."""
        return self.encode_word_embeddings(self.clip.token_embedding(token_ids), token_ids)

    def encode_word_embeddings(self, words: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Like `encode_text`, with the word embeddings [B, T, W] given; token_ids say where the text ends."""
        tokens = self._contextual(words) @ self.clip.text_projection
        return at_end_of_text(tokens, token_ids), tokens

    def encode_text_unprojected(self, token_ids: Tensor) -> Tensor:
        """Return the end-of-text token before the projection, [B, W] of int64 [B, T] token ids."""
        return at_end_of_text(self._contextual(self.clip.token_embedding(token_ids)), token_ids)

    def write_tokenizer(self, root: Path, prompt: Prompt) -> TokenizerSpec:
        """See `Backbone.write_tokenizer`."""
        return write_clip_tokenizer(root, context_length=self.context_length, prompt=prompt)

    def _contextual(self, words: Tensor) -> Tensor:
        clip = self.clip
        hidden = clip.transformer(words + clip.positional_embedding, attn_mask=clip.attn_mask)
        normalised: Tensor = clip.ln_final(hidden)
        return normalised
