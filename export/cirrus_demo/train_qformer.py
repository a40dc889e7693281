"""Train the demo's SPRC head, a small Q-Former on the frozen demo CLIP: `python -m cirrus_demo.train_qformer`.

Losses of the paper (arXiv 2310.05473, section 3.3, and `forward` of its released code): contrast of the two-pass query
against targets by max similarity; the same contrast for a learned prompt with the text alone; and alignment, the mean
squared distance between the image's prompt and the learned one. The learned prompt is thrown away afterwards.
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

from cirrus_client.tokenizer import TextCleaning, Tokenizer
from cirrus_demo import weights
from cirrus_demo.attributes import Split
from cirrus_demo.model import PREPROCESS
from cirrus_demo.samples import Samples, draw_samples
from cirrus_demo.train import FAMILIES
from cirrus_demo.training import SEED, Optimiser, committed_clip, draw_edits, normalised
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.bert_tokenizer import write_bert_tokenizer
from cirrus_export.backbones.blip2 import CONTEXT_LENGTH, Blip2Backbone
from cirrus_export.checkpoints.sprc import authors_names
from cirrus_export.heads.qformer import QFormer, QFormerSize

STEPS = 1600
LEARNING_RATE = 2e-3
SIZE = QFormerSize(image_width=128, num_queries=8, width=128, layers=3, inner=256, positions=CONTEXT_LENGTH, dim=64)
_SCALE = 50.0
_TEXT_SHARE = 0.4
_ALIGN_SHARE = 0.4


def main() -> None:
    """Render, encode with the committed CLIP, train, and write the head's weights."""
    samples = draw_samples(Split.TRAIN, FAMILIES, seed=SEED, spec=PREPROCESS)
    clip = committed_clip()
    qformer = train_qformer(Blip2Backbone(clip.visual), samples)
    weights.store_sprc(authors_names(qformer))


def train_qformer(backbone: Blip2Backbone, samples: Samples) -> QFormer:
    """Return a Q-Former on the backbone's image tokens."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng((SEED, 3))
    tokens = encode(backbone, np.concatenate([samples.photos, samples.sketches]))
    qformer = QFormer(SIZE).eval()
    nn.init.zeros_(qformer.embeddings.word_embeddings.weight)
    learned = nn.Parameter(0.02 * torch.randn(1, SIZE.num_queries, SIZE.width))
    optimiser = Optimiser([qformer, nn.ParameterList([learned])], LEARNING_RATE, STEPS)
    tokenizer = sprc_tokenizer()
    progress = tqdm(range(STEPS), desc="training Q-Former")
    for _ in progress:
        references, targets, texts = draw_edits(samples, rng)
        token_ids = torch.from_numpy(tokenizer(texts))
        token_ids = token_ids[:, : int((token_ids != 0).sum(dim=1).max())]
        target = qformer.target(tokens[targets].float())
        prompt_tokens = qformer.prompt(tokens[references].float(), token_ids)
        query = qformer.sentence(prompt_tokens, token_ids)
        from_text = qformer.sentence(learned.expand(len(texts), -1, -1), token_ids)
        align = F.mse_loss(prompt_tokens.mean(dim=1), learned.mean(dim=1).expand(len(texts), -1))
        loss = contrast(query, target) + _TEXT_SHARE * contrast(from_text, target) + _ALIGN_SHARE * align
        optimiser.step(loss)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return qformer


def sprc_tokenizer() -> Tokenizer:
    """Return BERT's tokenizer with the cleaning of SPRC's texts."""
    with tempfile.TemporaryDirectory() as scratch:
        prompt = Prompt(cleaning=TextCleaning.BLIP_CAPTION)
        spec = write_bert_tokenizer(Path(scratch), context_length=CONTEXT_LENGTH, prompt=prompt)
        return Tokenizer(spec, Path(scratch))


def contrast(query: Tensor, target: Tensor) -> Tensor:
    """Return the in-batch cross entropy of queries [B, D] against targets [B, V, D] by max similarity."""
    similarity = torch.einsum("qd,tvd->qtv", query, target).amax(dim=2)
    return F.cross_entropy(_SCALE * similarity, torch.arange(len(query)))


@torch.no_grad()
def encode(backbone: Blip2Backbone, pictures: np.ndarray) -> Tensor:
    """Return the image tokens of pictures, float16 [N, T, W], of uint8 [N, H, W, 3]."""
    return torch.cat(
        [
            backbone(normalised(torch.from_numpy(pictures[start : start + 256]))).half()
            for start in tqdm(range(0, len(pictures), 256), desc="encoding")
        ]
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
