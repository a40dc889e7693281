"""Train the demo's CLIP4Cir Combiner on the frozen demo CLIP: `python -m cirrus_demo.train_combiner`.

The second stage of CLIP4Cir (ABaldrati/CLIP4Cir, CVPRW 2022, section 3.2): in-batch cross entropy on 100 x cosine of
the combined query and the normalised image embeddings of the targets. The CLIP is frozen.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cirrus_demo import weights
from cirrus_demo.attributes import Split
from cirrus_demo.model import PREPROCESS
from cirrus_demo.samples import Samples, draw_samples
from cirrus_demo.train import FAMILIES, encode
from cirrus_demo.training import LOGIT_SCALE, SEED, Optimiser, Vocabulary, committed_clip, draw_edits
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.heads.combiner import Combiner

STEPS = 1600
LEARNING_RATE = 1e-3


def main() -> None:
    """Render, encode with the committed CLIP, train, and write the Combiner's weights."""
    samples = draw_samples(Split.TRAIN, FAMILIES, seed=SEED, spec=PREPROCESS)
    weights.store_head("combiner", train_combiner(OpenClipBackbone(committed_clip()), samples).state_dict())


def train_combiner(backbone: OpenClipBackbone, samples: Samples) -> Combiner:
    """Return a Combiner of the backbone's embeddings, in the proportions of the released one."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng((SEED, 5))
    images, _ = encode(backbone, np.concatenate([samples.photos, samples.sketches]))
    vocabulary = Vocabulary(backbone.clip)
    combiner = Combiner(backbone.dim, 4 * backbone.dim, 8 * backbone.dim).train()
    optimiser = Optimiser([combiner], LEARNING_RATE, STEPS)
    progress = tqdm(range(STEPS), desc="training Combiner")
    for _ in progress:
        references, targets, texts = draw_edits(samples, rng)
        with torch.no_grad():
            text = vocabulary.encode(texts)
        query = combiner(images[references], text)
        similarity = query @ F.normalize(images[targets], dim=-1).T
        loss = F.cross_entropy(LOGIT_SCALE * similarity, torch.arange(len(targets)))
        optimiser.step(loss)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return combiner.eval()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
