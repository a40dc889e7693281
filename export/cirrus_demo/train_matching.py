"""Teach the demo's Q-Former to match, for re-ranking: `python -m cirrus_demo.train_matching`, behind `train_qformer`.

BLIP-2's image-text matching (arXiv 2301.12597, section 3.2) with SPRC's sentence in the place of the text: a query's
prompt and text match its target, and do not match three others of the batch: the one that the retrieval finds most
similar, as the index would, a look-alike, and one of another family, from which matching is learned first. The loss is
cross entropy over a query's candidates and over match or no match; SPRC's contrast goes on beside it, since both use
the same Q-Former.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cirrus_demo import weights
from cirrus_demo.attributes import Split
from cirrus_demo.model import PREPROCESS, load_clip
from cirrus_demo.samples import FAMILY_SIZE, Samples, draw_samples
from cirrus_demo.train import FAMILIES
from cirrus_demo.train_qformer import SIZE, contrast, encode, sprc_tokenizer
from cirrus_demo.training import SEED, Optimiser, draw_edits
from cirrus_export.backbones.blip2 import Blip2Backbone
from cirrus_export.checkpoints import sprc
from cirrus_export.checkpoints.state import read_state_dict
from cirrus_export.heads.matching import Matching
from cirrus_export.heads.qformer import QFormer

STEPS = 1200
LEARNING_RATE = 2e-3
QUERIES = 4 * FAMILY_SIZE


def main() -> None:
    """Render, encode with the committed CLIP, train the committed Q-Former further, and write it with its head."""
    samples = draw_samples(Split.TRAIN, FAMILIES, seed=SEED, spec=PREPROCESS)
    qformer = QFormer(SIZE)
    with tempfile.TemporaryDirectory() as scratch:
        files = weights.materialise(Path(scratch))
        clip = load_clip(files.clip)
        sprc.load(read_state_dict(files.sprc), qformer)
    matching = train_matching(Blip2Backbone(clip.visual), qformer.eval(), samples)
    weights.store_sprc(sprc.authors_names(qformer, matching.itm_head))


def train_matching(backbone: Blip2Backbone, qformer: QFormer, samples: Samples) -> Matching:
    """Train a Q-Former further, with a new head for matching, and return both."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng((SEED, 7))
    tokens = encode(backbone, np.concatenate([samples.photos, samples.sketches]))
    matching = Matching(qformer, nn.Linear(SIZE.width, 2)).eval()
    optimiser = Optimiser([matching], LEARNING_RATE, STEPS)
    tokenizer = sprc_tokenizer()
    progress = tqdm(range(STEPS), desc="training matching")
    for _ in progress:
        references, targets, texts = draw_edits(samples, rng)
        references, targets, texts = references[:QUERIES], targets[:QUERIES], texts[:QUERIES]
        token_ids = torch.from_numpy(tokenizer(texts))
        token_ids = token_ids[:, : int((token_ids != 0).sum(dim=1).max())]
        image_tokens = tokens[targets].float()
        prompt = qformer.prompt(tokens[references].float(), token_ids)
        query, target = qformer.sentence(prompt, token_ids), qformer.target(image_tokens)
        candidates = _candidates(query.detach(), target.detach(), rng)
        of_query = torch.arange(len(texts)).repeat_interleave(candidates.shape[1])
        scores = matching(image_tokens[candidates.flatten()], prompt[of_query], token_ids[of_query])
        loss = contrast(query, target) + _matching_loss(scores.view(candidates.shape))
        optimiser.step(loss)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return matching


def _candidates(query: Tensor, target: Tensor, rng: np.random.Generator) -> Tensor:
    """Return for each query its target, the most similar other, a look-alike and a stranger, int64 [B, 4].

    A family's garments stand beside each other in the batch.
    """
    own = np.arange(QUERIES)
    similarity = torch.einsum("qd,tvd->qtv", query, target).amax(dim=2).fill_diagonal_(-torch.inf)
    look_alikes = own // FAMILY_SIZE * FAMILY_SIZE + (own + rng.integers(1, FAMILY_SIZE, QUERIES)) % FAMILY_SIZE
    strangers = (own + FAMILY_SIZE + rng.integers(0, QUERIES - 2 * FAMILY_SIZE + 1, QUERIES)) % QUERIES
    drawn = torch.from_numpy(np.stack([own, look_alikes, strangers], axis=1))
    return torch.cat([drawn[:, :1], similarity.argmax(dim=1, keepdim=True), drawn[:, 1:]], dim=1)


def _matching_loss(scores: Tensor) -> Tensor:
    """Return the loss of scores [B, C], the target's first."""
    matches = torch.zeros_like(scores)
    matches[:, 0] = 1
    first = torch.zeros(len(scores), dtype=torch.int64)
    return F.cross_entropy(scores, first) + F.binary_cross_entropy_with_logits(scores, matches)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
