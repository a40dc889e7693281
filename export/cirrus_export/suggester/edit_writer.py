"""MTST's modification-text generator: an InstructBLIP that reads two images (arXiv 2504.05316)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cirrus_client.errors import CheckpointError

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import DynamicCache, InstructBlipForConditionalGeneration


@dataclass(frozen=True)
class EditPrompt:
    """What the language model and the Q-Former read.

    token_ids: the prompt around and between the two images, where -1 - i stands for token i of both. instruction: the
    Q-Former's.
    """

    token_ids: tuple[int, ...]
    instruction: tuple[int, ...]


class ReadImage(nn.Module):
    """Vision tower, Q-Former and projection, which turn an image into tokens that the language model reads."""

    def __init__(self, model: InstructBlipForConditionalGeneration, instruction: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.instruction = tuple(instruction)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image_tokens [B, Q, D] of normalised pixels float32 [B, 3, S, S]."""
        model = self.model
        image = model.vision_model(pixels).last_hidden_state
        queries = model.query_tokens.expand(image.shape[0], -1, -1)
        instruction = torch.tensor(self.instruction, device=pixels.device).expand(image.shape[0], -1)
        read = model.qformer(
            input_ids=instruction, query_embeds=queries, encoder_hidden_states=image
        ).last_hidden_state[:, : queries.shape[1]]
        tokens: Tensor = model.language_projection(read)
        return tokens


class NextTokens(nn.Module):
    """The language model over tokens that follow those in a key-value cache, which gives the logits of the next token.

    The first call has the whole prompt and an empty cache, and each later one the token before. A cache has a fixed
    number of places: those that are not filled yet are masked, so one graph serves every step.
    """

    def __init__(self, model: InstructBlipForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = model.language_model

    def cached_per_token(self) -> tuple[int, int, int]:
        """Return the numbers of layers and heads, and the width, of the keys and values that a token adds to a cache.

        Raises CheckpointError if a layer keeps something else, like a recurrent state.
        """
        past = DynamicCache()
        word = torch.zeros((1, 1), dtype=torch.int64)
        with torch.no_grad():
            self.language_model(input_ids=word, past_key_values=past, use_cache=True)
        shapes = {tuple(kept.shape) for layer in past.layers for kept in (layer.keys, layer.values)}
        if len(shapes) != 1:
            kind = self.language_model.config.model_type
            found = ", ".join(map(str, sorted(shapes))) or "none"
            raise CheckpointError(f"language model {kind!r}: keys and values have the shapes {found}, expected one")
        _, heads, _, size = shapes.pop()
        return len(past.layers), heads, size

    def embedded(self, reference_tokens: Tensor, target_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Return what the language model reads at token_ids, int64 [B, S]: float32 [B, S, D].

        reference_tokens, target_tokens: float32 [B, Q, D]. A token id of -1 - i stands for token i of both images.
        """
        images = torch.cat([reference_tokens, target_tokens], dim=1)
        places = (-1 - token_ids).clamp(min=0)[..., None].expand(-1, -1, images.shape[-1])
        words = self.language_model.get_input_embeddings()(token_ids.clamp(min=0))
        return torch.where((token_ids < 0)[..., None], images.gather(1, places), words)

    def forward(
        self, reference_tokens: Tensor, target_tokens: Tensor, token_ids: Tensor, cached_tokens: Tensor, cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the logits [B, V] of the token after token_ids, and what they add to the cache, [B, L, 2, H, S, E].

        token_ids: int64 [B, S], see `embedded`. cached_tokens: number of places of the cache that are filled, int64
        [B, 1]. cache: keys and values of each layer, float32 [B, L, 2, H, N, E].
        """
        filled = (torch.arange(cache.shape[4]) < cached_tokens)[:, None].expand(-1, token_ids.shape[1], -1)
        given = torch.arange(token_ids.shape[1])
        earlier = (given <= given[:, None]).expand(token_ids.shape[0], -1, -1)
        mask = torch.zeros(()).where(torch.cat([filled, earlier], dim=2)[:, None], -torch.inf)
        past = DynamicCache([layer.unbind(1) for layer in cache.unbind(1)])
        logits = self.language_model(
            inputs_embeds=self.embedded(reference_tokens, target_tokens, token_ids),
            attention_mask=mask,
            position_ids=cached_tokens + given,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        added = [torch.stack([layer.keys, layer.values], dim=1)[..., cache.shape[4] :, :] for layer in past.layers]
        return logits[:, -1], torch.stack(added, dim=1)
