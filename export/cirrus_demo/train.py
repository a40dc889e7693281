"""Train the demo model from scratch on rendered garments, on a CPU in minutes: `make demo-train`.

First a small CLIP, by contrast between photos, captions and sketches, with attribute probes on the image embedding
and on the image tokens as an auxiliary loss (they are thrown away afterwards). Then, on its frozen features, the
TransAgg query head and the UNION target head together, by the batch-based classification loss of both papers: in-batch
cross entropy on 100 x cosine. Batches consist of families of look-alikes, so that negatives are hard. Muon trains the
transformers' matrices: after 400 steps held-out captions find their photo first three times as often as with AdamW.
Another machine adds in another order: it reproduces the figures, not the bits.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from cirrus_client.files import write_atomically
from cirrus_demo import weights
from cirrus_demo.attributes import Colour, Garment, Kind, Length, Neckline, Pattern, Sleeve, Split
from cirrus_demo.captions import caption, sketch_caption
from cirrus_demo.evaluate import evaluate
from cirrus_demo.model import PREPROCESS, create_clip
from cirrus_demo.samples import FAMILY_SIZE, Samples, draw_samples
from cirrus_demo.training import LOGIT_SCALE, SEED, Optimiser, Vocabulary, contrast, draw_edits, normalised
from cirrus_export.backbones.open_clip import OpenClipBackbone, open_clip
from cirrus_export.heads.transagg import TransAgg
from cirrus_export.heads.union import Union

FAMILIES = 2400
CLIP_FAMILIES = 16
CLIP_STEPS = 2400
HEAD_STEPS = 1600
CLIP_LEARNING_RATE = 3e-3
HEAD_LEARNING_RATE = 1e-3
_ATTRIBUTES = (Kind, Colour, Pattern, Colour, Sleeve, Neckline, Length)


def main() -> None:
    """Render, train, evaluate on the held-out test split, and write weights and figures."""
    samples = draw_samples(Split.TRAIN, FAMILIES, seed=SEED, spec=PREPROCESS)
    clip = train_clip(samples)
    head = train_heads(OpenClipBackbone(clip), samples)
    weights.store(clip.state_dict(), head)
    with tempfile.TemporaryDirectory() as scratch:
        metrics = evaluate(weights.materialise(Path(scratch)), Path(scratch) / "catalogue")
    write_atomically(weights.WEIGHTS / "metrics.json", (json.dumps(asdict(metrics), indent=2) + "\n").encode())
    logging.getLogger(__name__).info("%s", metrics)


def train_clip(samples: Samples) -> open_clip.CLIP:
    """Return a CLIP whose image, text and sketch embeddings of a garment agree."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng((SEED, 1))
    backbone = OpenClipBackbone(create_clip())
    clip = backbone.clip.train().requires_grad_(True)
    nn.init.zeros_(clip.token_embedding.weight)
    vocabulary = Vocabulary(clip)
    probes = _Probes(backbone.dim, backbone.num_image_tokens - 1)
    optimiser = Optimiser([clip, probes], CLIP_LEARNING_RATE, CLIP_STEPS)
    progress = tqdm(range(CLIP_STEPS), desc="training CLIP")
    for _ in progress:
        places = _family_places(samples, rng)
        garments = [samples.garments[place] for place in places]
        sketched = rng.choice(len(places), len(places) // 2, replace=False)
        pixels = torch.from_numpy(np.concatenate([samples.photos[places], samples.sketches[places[sketched]]]))
        embedding, tokens = backbone.encode_image(normalised(pixels))
        image = F.normalize(embedding, dim=-1)
        photo, sketch = image[: len(places)], image[len(places) :]
        captions = [caption(garment, rng) for garment in garments]
        captions += [sketch_caption(garments[place], rng) for place in sketched]
        text = F.normalize(vocabulary.encode(captions), dim=-1)
        scale = clip.logit_scale.exp().clamp(max=LOGIT_SCALE)
        loss = (
            contrast(photo, text[: len(places)], scale)
            + 0.3 * contrast(sketch, text[len(places) :], scale)
            + 0.5 * contrast(sketch, photo[sketched], scale)
            + 0.5 * probes.loss(photo, tokens[: len(places)], garments)
        )
        optimiser.step(loss)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return _through_half(clip.eval())


def train_heads(backbone: OpenClipBackbone, samples: Samples) -> dict[str, Tensor]:
    """Return the state dict of both heads, trained on the frozen backbone, in their authors' key names."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng((SEED, 2))
    vocabulary = Vocabulary(backbone.clip)
    query_head = TransAgg(backbone.dim, dropout=0.0).train()
    union = Union(backbone.dim, dropout=0.0).train()
    optimiser = Optimiser([query_head, union], HEAD_LEARNING_RATE, HEAD_STEPS)
    image_embeddings, image_tokens = encode(backbone, np.concatenate([samples.photos, samples.sketches]))
    with torch.no_grad():
        null_text = backbone.encode_text(backbone.null_token_ids)[0]
    progress = tqdm(range(HEAD_STEPS), desc="training heads")
    for _ in progress:
        references, targets, texts = draw_edits(samples, rng)
        token_ids = vocabulary.token_ids(texts)
        with torch.no_grad():
            text_embedding, text_tokens = vocabulary.encode_all(token_ids)
        query = query_head(
            image_embeddings[references], image_tokens[references], text_embedding, text_tokens, token_ids
        )
        target = union(image_embeddings[targets], null_text.expand(len(targets), -1))
        loss = F.cross_entropy(LOGIT_SCALE * query @ target.T, torch.arange(len(targets)))
        optimiser.step(loss)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return {**query_head.eval().state_dict(), **union.eval().state_dict()}


class _Probes(nn.Module):
    """Linear readings of every attribute, from the embedding and from the patches, that keep shape in the features."""

    def __init__(self, dim: int, num_patches: int) -> None:
        super().__init__()
        self.reduced = nn.Linear(dim, 16)
        self.of_embedding = nn.ModuleList(nn.Linear(dim, len(kind) + 1) for kind in _ATTRIBUTES)
        self.of_patches = nn.ModuleList(nn.Linear(16 * num_patches, len(kind) + 1) for kind in _ATTRIBUTES)

    def loss(self, photo: Tensor, tokens: Tensor, garments: list[Garment]) -> Tensor:
        patches = self.reduced(tokens[:, 1:]).flatten(1)
        losses = []
        for place, values in enumerate(_ATTRIBUTES):
            labels = torch.tensor([_label(garment, place, tuple(values)) for garment in garments])
            losses.append(F.cross_entropy(self.of_embedding[place](10 * photo), labels))
            losses.append(F.cross_entropy(self.of_patches[place](patches), labels))
        return torch.stack(losses).sum()


def _label(garment: Garment, place: int, values: tuple[object, ...]) -> int:
    fields = (
        garment.kind,
        garment.colour,
        garment.pattern,
        garment.second_colour,
        garment.sleeve,
        garment.neckline,
        garment.length,
    )
    return len(values) if fields[place] is None else values.index(fields[place])


def _family_places(samples: Samples, rng: np.random.Generator) -> NDArray[np.int64]:
    families = rng.choice(samples.num_families, CLIP_FAMILIES, replace=False)
    return (families[:, None] * FAMILY_SIZE + np.arange(FAMILY_SIZE)).ravel()


def encode(backbone: OpenClipBackbone, pictures: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return (image_embedding [N, D], image_tokens [N, T, D]) of pictures, uint8 [N, H, W, 3]."""
    embeddings, tokens = [], []
    with torch.no_grad():
        for start in tqdm(range(0, len(pictures), 256), desc="encoding"):
            embedding, token = backbone.encode_image(normalised(torch.from_numpy(pictures[start : start + 256])))
            embeddings.append(embedding)
            tokens.append(token)
    return torch.cat(embeddings), torch.cat(tokens)


def _through_half(clip: open_clip.CLIP) -> open_clip.CLIP:
    """Round the weights as they will be stored, so that the heads are trained on the features that are served."""
    return clip.half().float()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
