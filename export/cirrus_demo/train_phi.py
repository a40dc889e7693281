"""Train the demo's phi, which turns an image into a word: `python -m cirrus_demo.train_phi`.

Pic2Word's loss (arXiv 2302.03084, section 3.2): "a photo of $", with the image's word in place of $, must be nearer to
its image than to the batch's others, and the other way round. The CLIP is frozen.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cirrus_demo import weights
from cirrus_demo.attributes import Split
from cirrus_demo.model import PREPROCESS, create_tokenizer
from cirrus_demo.samples import Samples, draw_samples
from cirrus_demo.train import FAMILIES, encode
from cirrus_demo.training import SEED, Optimiser, committed_clip, contrast
from cirrus_export.backbones.open_clip import OpenClipBackbone, open_clip
from cirrus_export.heads.inversion import Phi, PseudoWordQuery, Replaced

STEPS = 1500
BATCH = 128
LEARNING_RATE = 1e-3
PROMPT = "a photo of $"
_SCALE = 30.0


def main() -> None:
    """Render, encode with the committed CLIP, train, and write phi's weights."""
    samples = draw_samples(Split.TRAIN, FAMILIES, seed=SEED, spec=PREPROCESS)
    weights.store_head("phi", train_phi(OpenClipBackbone(committed_clip()), samples).state_dict())


def train_phi(backbone: OpenClipBackbone, samples: Samples) -> Phi:
    """Return phi from the backbone's image embeddings to its words."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng((SEED, 4))
    images, _ = encode(backbone, samples.photos)
    phi = Phi(backbone.dim, 4 * backbone.dim, int(backbone.clip.token_embedding.embedding_dim)).eval()
    tokenizer = create_tokenizer()
    token_ids = tokenizer([PROMPT])
    token_ids = token_ids[:, : int((token_ids != 0).sum())].expand(BATCH, -1)
    _shorten(backbone.clip, token_ids.shape[1])
    query = PseudoWordQuery(backbone, phi, placeholder_id=tokenizer.encode("$")[0], replaced=Replaced.FIRST)
    scale = torch.tensor(_SCALE)
    optimiser = Optimiser([phi], LEARNING_RATE, STEPS)
    progress = tqdm(range(STEPS), desc="training phi")
    for _ in progress:
        batch = images[torch.from_numpy(rng.choice(len(images), BATCH, replace=False))]
        loss = contrast(query(batch, token_ids), F.normalize(batch, dim=-1), scale)
        optimiser.step(loss)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return phi


def _shorten(clip: open_clip.CLIP, length: int) -> None:
    """Cut the text context; attention is causal and padding follows the end token, so no embedding changes."""
    clip.positional_embedding = torch.nn.Parameter(clip.positional_embedding[:length], requires_grad=False)
    clip.attn_mask = clip.attn_mask[:length, :length]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
