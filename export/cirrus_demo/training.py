"""What the trainings of the demo's parts share: the optimiser, texts, losses and the edits that are drawn."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_demo import weights
from cirrus_demo.attributes import Garment
from cirrus_demo.edits import edit_captions, free_edit
from cirrus_demo.families import edit_pairs
from cirrus_demo.model import PREPROCESS, create_tokenizer, load_clip
from cirrus_demo.samples import FAMILY_SIZE, Samples
from cirrus_export.backbones.open_clip import open_clip
from cirrus_export.gate.probe import fashioniq_text

SEED = 7
LOGIT_SCALE = 100.0
_HEAD_FAMILIES = 8
_SKETCH_SHARE = 0.15
_LAYER = re.compile(r"resblocks|fusion\.layers|t5_layers\.block|encoder\.layer")


class Optimiser:
    """Muon for the matrices of transformer layers, AdamW for everything else, in one rising and falling schedule."""

    def __init__(self, modules: list[nn.Module], learning_rate: float, steps: int) -> None:
        named = [entry for module in modules for entry in module.named_parameters()]
        matrices = [value for name, value in named if value.ndim == 2 and _LAYER.search(name)]
        others = [value for name, value in named if not (value.ndim == 2 and _LAYER.search(name))]
        self._parameters = [value for _, value in named]
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
        ]
        if matrices:
            muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
            self._optimisers.append(muon)
        self._schedules = [
            torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, steps, pct_start=0.1, cycle_momentum=False)
            for optimiser in self._optimisers
        ]

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of a loss once."""
        for optimiser in self._optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
        for schedule in self._schedules:
            schedule.step()


class Vocabulary:
    """Texts through a CLIP's text tower, at no more tokens than they have.

    Attention is causal and padding follows the end token, so a shorter context changes no embedding.
    """

    def __init__(self, clip: open_clip.CLIP) -> None:
        self._clip = clip
        self._tokenizer = create_tokenizer()

    def token_ids(self, texts: list[str]) -> Tensor:
        """Return int64 [B, T'] with T' the longest text's length."""
        token_ids = self._tokenizer(texts)
        return token_ids[:, : int((token_ids != 0).sum(dim=1).max())]

    def encode(self, texts: list[str]) -> Tensor:
        """Return unnormalised text embeddings [B, D]."""
        return self.encode_all(self.token_ids(texts))[0]

    def encode_all(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (text_embedding [B, D], text_tokens [B, T', D]), as `OpenClipBackbone.encode_text` does."""
        clip, length = self._clip, token_ids.shape[1]
        hidden = clip.token_embedding(token_ids) + clip.positional_embedding[:length]
        hidden = clip.transformer(hidden, attn_mask=clip.attn_mask[:length, :length])
        tokens = clip.ln_final(hidden) @ clip.text_projection
        return tokens[torch.arange(len(token_ids)), token_ids.argmax(dim=1)], tokens


def committed_clip() -> open_clip.CLIP:
    """Return the demo's CLIP of the committed weights."""
    with tempfile.TemporaryDirectory() as scratch:
        return load_clip(weights.materialise(Path(scratch)).clip)


def contrast(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric in-batch cross entropy of normalised [B, D] against [B, D]."""
    logits = scale * left @ right.T
    labels = torch.arange(len(left))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def draw_edits(samples: Samples, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[str]]:
    """For every garment of some families, as target, a reference and the text that leads from it to the target.

    Mostly an edit of a look-alike; sometimes the garment's own sketch with the empty text, the image-only query.
    References count the photos first, then the sketches.
    """
    references, targets, texts = [], [], []
    for family in rng.choice(samples.num_families, _HEAD_FAMILIES, replace=False):
        start = int(family) * FAMILY_SIZE
        members = samples.garments[start : start + FAMILY_SIZE]
        pairs = edit_pairs(members)
        for place, garment in enumerate(members):
            candidates = [reference for reference, target in pairs if target == place]
            if not candidates or rng.random() < _SKETCH_SHARE:
                references.append(len(samples.garments) + start + place)
                texts.append("")
            else:
                reference = int(rng.choice(candidates))
                references.append(start + reference)
                texts.append(_edit_text(members[reference], garment, rng))
            targets.append(start + place)
    return torch.tensor(references), torch.tensor(targets), texts


def _edit_text(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    """FashionIQ's two captions, or one request in free form."""
    if rng.random() < 0.4:
        return free_edit(reference, target, rng)
    return fashioniq_text(edit_captions(reference, target, rng))


def normalised(levels: Tensor) -> Tensor:
    """Return uint8 [B, H, W, 3] as float32 [B, 3, H, W], as `cirrus_client.image.preprocess.normalise` does."""
    mean, std = torch.tensor(PREPROCESS.mean), torch.tensor(PREPROCESS.std)
    return ((levels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
