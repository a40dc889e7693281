"""MTST's modification-text generator: an InstructBLIP that reads two images (arXiv 2504.05316)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import InstructBlipForConditionalGeneration


@dataclass(frozen=True)
class EditPrompt:
    """The token ids around the two images in the language model's prompt, and the Q-Former's instruction."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
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
    """The language model over both images and the text so far, which gives the likeliest next token at every position.

    Attention is causal, so padding after position t can't change the prediction at t: one graph of a fixed length
    serves every decoding step.
    """

    def __init__(self, model: InstructBlipForConditionalGeneration, prompt: EditPrompt) -> None:
        super().__init__()
        self.language_model = model.language_model
        self.prompt = prompt

    def prefix(self, reference_tokens: Tensor, target_tokens: Tensor) -> Tensor:
        """Return the embedded prompt [B, P, D] of both images' tokens [B, Q, D]."""
        prompt = self.prompt
        return torch.cat(
            [
                self._words(prompt.before, reference_tokens),
                reference_tokens,
                self._words(prompt.between, reference_tokens),
                target_tokens,
                self._words(prompt.after, reference_tokens),
            ],
            dim=1,
        )

    def forward(self, reference_tokens: Tensor, target_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Return the greedy tokens, int64 [B, T]: at position t the one after the prompt and token_ids[:, :t]."""
        prefix = self.prefix(reference_tokens, target_tokens)
        given = self.language_model.get_input_embeddings()(token_ids[:, :-1])
        logits = self.language_model(inputs_embeds=torch.cat([prefix, given], dim=1), use_cache=False).logits
        return logits[:, prefix.shape[1] - 1 :].argmax(dim=-1)

    def _words(self, token_ids: Sequence[int], like: Tensor) -> Tensor:
        words: Tensor = self.language_model.get_input_embeddings()(torch.tensor(token_ids, device=like.device))
        return words.expand(like.shape[0], -1, -1)
