"""open_clip models as a frozen backbone that shows every token."""

from __future__ import annotations

from torch import Tensor, nn

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip
from open_clip.tokenizer import SimpleTokenizer


class OpenClipBackbone(nn.Module):
    """A CLIP whose encoders return the global embedding and all tokens, projected and unnormalised.

    TransAgg's modified CLIP (Code-kunkun/ZS-CIR `model/clip/model.py`) sends every patch through `ln_post` and
    the projection, and every text token through `ln_final` and the text projection; stock encoders do so for the
    pooled token alone.
    """

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)

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

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (text_embedding [B, D], text_tokens [B, T, D]) of int64 [B, T] token ids."""
        clip = self.clip
        hidden = clip.token_embedding(token_ids) + clip.positional_embedding
        hidden = clip.transformer(hidden, attn_mask=clip.attn_mask)
        tokens = clip.ln_final(hidden) @ clip.text_projection
        end_of_text = token_ids.argmax(dim=-1)[:, None, None].expand(-1, 1, tokens.shape[-1])
        return tokens.gather(1, end_of_text).squeeze(1), tokens
