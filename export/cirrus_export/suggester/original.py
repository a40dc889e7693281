"""What the torch original of a suggester writes, with the logits of each of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from cirrus_client.ensemble import Arrays
from cirrus_client.suggest import NEXT_TOKENS, READ_IMAGE
from cirrus_export.suggester.edit_writer import EditPrompt, NextTokens, ReadImage

MAX_TOKENS = 32


@dataclass(frozen=True)
class Written:
    """The text of one pair.

    pixels: both images, float32 [2, 3, S, S]. image_tokens: float32 [2, Q, D]. token_ids: without the end token.
    logits: of each step, float32 [T, V]; the last is of the end token, if the text has one.
    """

    pixels: NDArray[np.float32]
    image_tokens: NDArray[np.float32]
    token_ids: list[int]
    logits: NDArray[np.float32]

    @cached_property
    def margin(self) -> float:
        """The smallest lead of a token over the second best, in logits: how far rounding is from another text."""
        first_two = np.sort(self.logits, axis=1)[:, -2:]
        return float((first_two[:, 1] - first_two[:, 0]).min())


@dataclass(frozen=True)
class Original:
    """The torch modules behind both graphs, the prompt that a text follows, and the token that ends it."""

    read: ReadImage
    following: NextTokens
    prompt: EditPrompt
    end_id: int

    def write(self, pixels: NDArray[np.float32]) -> Written:
        """Write the text of one pair. pixels: float32 [2, 3, S, S]."""
        with torch.no_grad():
            tokens = self.read(torch.from_numpy(pixels))
            token_ids = greedy(self.following, tokens, self.prompt.token_ids, self.end_id)
            steps = min(len(token_ids) + 1, MAX_TOKENS)
            read = torch.tensor([[*self.prompt.token_ids, *token_ids[: steps - 1]]])
            logits = self.following.language_model(
                inputs_embeds=self.following.embedded(tokens[:1], tokens[1:], read),
                use_cache=False,
                logits_to_keep=steps,
            ).logits[0]
        return Written(pixels, tokens.numpy(), token_ids, logits.numpy())


def greedy(following: NextTokens, tokens: torch.Tensor, prompt: Sequence[int], end_id: int) -> list[int]:
    """Return the token ids that transformers' own `generate` decodes greedily, without the one that ends them.

    tokens: of both images, float32 [2, Q, D]. prompt: token ids.
    """
    prefix = following.embedded(tokens[:1], tokens[1:], torch.tensor([prompt]))
    with torch.no_grad():
        generated = following.language_model.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            num_beams=1,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )[0].tolist()
    return generated[: generated.index(end_id)] if end_id in generated else generated


def calibration(
    originals: Sequence[Written], prompt: Sequence[int], end_id: int, cache: tuple[int, ...]
) -> dict[str, Arrays]:
    """Return inputs of both graphs, by the graph's name, on which a lower precision is calibrated.

    NEXT_TOKENS reads the prompt and the whole text at once, so that its layers see the values of all steps. End
    tokens fill up shorter texts. cache: the shape of an empty cache, [L, 2, H, N, E].
    """
    longest = max(len(written.token_ids) for written in originals)
    read = [[*prompt, *written.token_ids, *[end_id] * (longest - len(written.token_ids))] for written in originals]
    tokens = np.stack([written.image_tokens for written in originals])
    return {
        READ_IMAGE: {"pixels": np.concatenate([written.pixels for written in originals])},
        NEXT_TOKENS: {
            "reference_tokens": tokens[:, 0],
            "target_tokens": tokens[:, 1],
            "token_ids": np.array(read),
            "cached_tokens": np.zeros((len(originals), 1), dtype=np.int64),
            "cache": np.zeros((len(originals), *cache), dtype=np.float32),
        },
    }
