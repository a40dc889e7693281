"""Train the demo's MagicLens head on the frozen demo CLIP: `python -m cirrus_demo.train_magiclens`.

The paper's loss (arXiv 2403.19651, section 3.3): the query must be nearer to its target than to the batch's other
targets and to the batch's query images, whose text is empty as a target's is. The CLIP is frozen here, and trained in
the paper. Pictures are prepared as the recipe does, the largest centre square first.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cirrus_demo import weights
from cirrus_demo.attributes import Split
from cirrus_demo.model import PREPROCESS
from cirrus_demo.samples import Samples, draw_samples
from cirrus_demo.train import FAMILIES, encode
from cirrus_demo.training import SEED, Optimiser, Vocabulary, committed_clip, draw_edits
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.heads.magiclens import MagicLens, MagicLensSize
from cirrus_export.recipes.magiclens import MagicLensRecipe

STEPS = 1600
LEARNING_RATE = 1e-3
_SCALE = 50.0


def main() -> None:
    """Render, encode with the committed CLIP, train, and write the head's weights."""
    samples = draw_samples(Split.TRAIN, FAMILIES, seed=SEED, spec=MagicLensRecipe.preprocess(PREPROCESS))
    weights.store_head("magiclens", train_magiclens(OpenClipBackbone(committed_clip()), samples).state_dict())


def train_magiclens(backbone: OpenClipBackbone, samples: Samples) -> MagicLens:
    """Return a head over the backbone's embeddings, in the proportions of the released one."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng((SEED, 6))
    images, _ = encode(backbone, np.concatenate([samples.photos, samples.sketches]))
    vocabulary = Vocabulary(backbone.clip)
    head = MagicLens(MagicLensSize.released(backbone.dim)).train()
    optimiser = Optimiser([head], LEARNING_RATE, STEPS)
    with torch.no_grad():
        null_text = backbone.embed_text(backbone.null_token_ids)
    progress = tqdm(range(STEPS), desc="training MagicLens")
    for _ in progress:
        references, targets, texts = draw_edits(samples, rng)
        with torch.no_grad():
            text = vocabulary.encode(texts)
        query = head(images[references], text)
        candidates = torch.cat([targets, references])
        similarity = query @ head(images[candidates], null_text.expand(len(candidates), -1)).T
        similarity = similarity.masked_fill(_no_negatives(references, targets, texts), -torch.inf)
        loss = F.cross_entropy(_SCALE * similarity, torch.arange(len(targets)))
        optimiser.step(loss)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return head.eval()


def _no_negatives(references: Tensor, targets: Tensor, texts: list[str]) -> Tensor:
    """Return where a candidate is the query's own target a second time, or, as its text is empty, the query itself."""
    number = torch.arange(len(targets))
    found = torch.cat([targets, references]) == targets[:, None]
    found[number, number] = False
    found[number, len(targets) + number] |= torch.tensor([not text for text in texts])
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
