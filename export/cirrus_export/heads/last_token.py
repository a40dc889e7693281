"""A vision-language model's language model, read at the last token of a message."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_export.heads.prompts import Ending


class LastToken(nn.Module):
    """The language model over [prompt; image; prompt; text], read at its last token, and normalised.

    Both parts of the prompt and the text are padded with negative ids. An image whose mask is negative is not there.
    Nothing attends to what is not there but itself, and it takes no positions.
    """

    axes: Tensor
    positions: Tensor

    def __init__(self, language: Any, axes: Tensor, positions: Tensor, before: int, dim: int) -> None:
        """Keep the model.

        axes: which of time, height and width each frequency of the rotation stands for, int64 [H / 2]. positions: of
        the image's tokens, see `grid_positions`, int64 [3, N]. before: how many of a prompt's ids precede the image.
        dim: how many values of the hidden state are kept.
        """
        super().__init__()
        self.language: Any = language
        self.before = before
        self.extent = int(positions.max()) + 1
        self.dim = dim
        self.register_buffer("axes", axes, persistent=False)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, image_tokens: Tensor, prompt_ids: Tensor, image_mask: Tensor, token_ids: Tensor) -> Tensor:
        """Return embeddings [B, dim].

        image_tokens: [B, N, W * (1 + K)], with what the first K layers add to them. prompt_ids, token_ids: int64
        [B, P] and [B, T]. image_mask: int64 [B, 1], 1 or negative.
        """
        width = self.language.config.hidden_size
        image, *deepstack = image_tokens.split(width, dim=-1)
        before, behind = prompt_ids[:, : self.before], prompt_ids[:, self.before :]
        hidden = torch.cat([self._words(before), image, self._words(behind), self._words(token_ids)], dim=1)
        of_image = (image_mask > 0).expand(-1, image.shape[1])
        seen = torch.cat([before >= 0, of_image, behind >= 0, token_ids >= 0], dim=1)
        places = torch.arange(hidden.shape[1], device=hidden.device)
        causal, itself = places[:, None] >= places, places[:, None] == places
        # added to the scores: of a mask of truth values, transformers' eager attention adds 1 where a token is seen
        mask = torch.where(seen[:, None, None, :] & causal | itself, 0.0, -torch.inf)
        cos, sin = self._rotation(before, image_mask, behind, token_ids)
        for number, layer in enumerate(self.language.layers):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=(cos, sin))
            if number < len(deepstack):
                words = behind.shape[1] + token_ids.shape[1]
                hidden = hidden + F.pad(deepstack[number], (0, 0, self.before, words))
        last = (seen * places).amax(dim=1)
        hidden = hidden.gather(1, last[:, None, None].expand(-1, 1, width)).squeeze(1)
        return F.normalize(self.language.norm(hidden)[:, : self.dim], dim=-1)

    def _words(self, token_ids: Tensor) -> Tensor:
        words: Tensor = self.language.embed_tokens(token_ids.clamp(min=0))
        return words

    def _rotation(self, before: Tensor, image_mask: Tensor, behind: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [B, L, H] of every position in time, height and width (M-RoPE)."""
        places = [
            torch.arange(ids.shape[1], device=ids.device).expand(ids.shape) for ids in (before, behind, token_ids)
        ]
        first = (before >= 0).sum(dim=1, keepdim=True)
        second = first + (image_mask > 0) * self.extent
        third = second + (behind >= 0).sum(dim=1, keepdim=True)
        axes = [
            torch.cat([places[0], first + image, second + places[1], third + places[2]], dim=1)
            for image in self.positions
        ]
        rotary = self.language.rotary_emb
        chosen = torch.stack(axes, dim=-1).index_select(-1, self.axes)
        angles = (chosen.float() * rotary.inv_freq.float()).repeat(1, 1, 2)
        return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling


class WithoutImage(nn.Module):
    """The task's prompt, and an image that is not there, for a text alone."""

    def __init__(
        self, prompt: tuple[int, ...], num_image_tokens: int, image_token_width: int, ending: Ending | None
    ) -> None:
        """ending: what a text alone has behind it, None if that is what every text has."""
        super().__init__()
        self.prompt = prompt
        self.shape = (num_image_tokens, image_token_width)
        self.ending = ending

    def forward(self, token_ids: Tensor) -> tuple[Tensor, ...]:
        """Return image_tokens [B, N, W'], which are not looked at, prompt_ids int64 [B, P] and image_mask int64 [B, 1].

        The gate compares directions, so none of them is zero. With an ending, the fourth is the texts with it, int64
        [B, T].
        """
        batch, device = token_ids.shape[0], token_ids.device
        prompt, mask = (torch.tensor(ids, device=device).expand(batch, -1) for ids in (self.prompt, (-1,)))
        made = torch.ones(1, *self.shape, device=device).expand(batch, -1, -1), prompt, mask
        return made if self.ending is None else (*made, self.ending.put(token_ids))


def line_positions(count: int) -> Tensor:
    """Return the positions of tokens that are counted like words, int64 [3, count]."""
    return torch.arange(count).expand(3, -1)
