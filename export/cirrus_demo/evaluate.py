"""What the demo model shows on descriptions that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cirrus_client.image.preprocess import preprocess
from cirrus_demo.attributes import Kind, Split
from cirrus_demo.catalogue import (
    PUBLISHED_SEED,
    PUBLISHED_SIZE,
    CatalogueSize,
    image_path,
    read_gallery,
    read_queries,
    read_sketched,
    sketch_path,
    write_catalogue,
)
from cirrus_demo.model import PREPROCESS, create_tokenizer, load_clip
from cirrus_demo.weights import DemoWeights
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.checkpoints import transagg_union
from cirrus_export.checkpoints.state import read_state_dict
from cirrus_export.heads.frozen import freeze
from cirrus_export.heads.transagg import TransAgg
from cirrus_export.heads.union import Union

_BATCH = 128


@dataclass(frozen=True)
class Recalls:
    """Share of queries whose labelled target is among the first 1, 10 or 50."""

    at_1: float
    at_10: float
    at_50: float


@dataclass(frozen=True)
class DemoMetrics:
    """Recalls, the mean over the three kinds of garment, each kind searched in its own gallery.

    chance_at_10: what a random ranking reaches. sketch: a sketch, with no text, finds the photo of its
    garment.
    """

    queries: int
    gallery_a_kind: int
    chance_at_10: float
    composed: Recalls
    image_only: Recalls
    text_only: Recalls
    untrained_sum: Recalls
    sketch: Recalls
    sketch_gallery: int
    sketch_chance_at_10: float


def evaluate(files: DemoWeights, root: Path, *, size: CatalogueSize = PUBLISHED_SIZE) -> DemoMetrics:
    """Measure the weights on the test split, which is rendered below `root`."""
    write_catalogue(root, split=Split.TEST, seed=PUBLISHED_SEED, size=size)
    model = _Model(files)
    by_kind = [_evaluate_kind(model, root, kind) for kind in Kind]
    sketched = read_sketched(root, Split.TEST)
    sketches = model.queries(*model.images([sketch_path(root, name) for name in sketched]), [""] * len(sketched))
    photos = model.targets(model.images([image_path(root, name) for name in sketched])[0])
    gallery = len(read_gallery(root, Kind.DRESS, Split.TEST))
    return DemoMetrics(
        queries=sum(len(read_queries(root, kind, Split.TEST)) for kind in Kind),
        gallery_a_kind=gallery,
        chance_at_10=10 / gallery,
        composed=_mean([kind["composed"] for kind in by_kind]),
        image_only=_mean([kind["image_only"] for kind in by_kind]),
        text_only=_mean([kind["text_only"] for kind in by_kind]),
        untrained_sum=_mean([kind["untrained_sum"] for kind in by_kind]),
        sketch=_recalls(sketches, photos, torch.arange(len(sketched))),
        sketch_gallery=len(sketched),
        sketch_chance_at_10=10 / len(sketched),
    )


class _Model:
    def __init__(self, files: DemoWeights) -> None:
        self.backbone = OpenClipBackbone(load_clip(files.clip))
        self.query_head = TransAgg(self.backbone.dim)
        self.union = Union(self.backbone.dim)
        head = read_state_dict(files.head)
        transagg_union.load_query_head(head, self.query_head)
        transagg_union.load_union(head, self.union)
        freeze(self.query_head)
        freeze(self.union)
        self.tokenizer = create_tokenizer()

    @torch.no_grad()
    def images(self, paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        embeddings, tokens = [], []
        for start in tqdm(range(0, len(paths), _BATCH), desc="encoding", leave=False):
            batch = [preprocess(path.read_bytes(), PREPROCESS) for path in paths[start : start + _BATCH]]
            embedding, token = self.backbone.encode_image(torch.from_numpy(np.stack(batch)))
            embeddings.append(embedding)
            tokens.append(token)
        return torch.cat(embeddings), torch.cat(tokens)

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        return self.backbone.encode_text(self.tokenizer(list(texts)))[0]

    @torch.no_grad()
    def queries(self, image: Tensor, image_tokens: Tensor, texts: Sequence[str]) -> Tensor:
        queries = []
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            token_ids = self.tokenizer(list(texts[part]))
            text, text_tokens = self.backbone.encode_text(token_ids)
            queries.append(self.query_head(image[part], image_tokens[part], text, text_tokens, token_ids))
        return torch.cat(queries)

    @torch.no_grad()
    def targets(self, image: Tensor) -> Tensor:
        targets: Tensor = self.union(image, self.text_embeddings([""]).expand(len(image), -1))
        return targets


@torch.no_grad()
def _evaluate_kind(model: _Model, root: Path, kind: Kind) -> dict[str, Recalls]:
    names = read_gallery(root, kind, Split.TEST)
    queries = read_queries(root, kind, Split.TEST)
    rows = {name: row for row, name in enumerate(names)}
    labels = torch.tensor([rows[query.target] for query in queries])
    references = torch.tensor([rows[query.reference] for query in queries])
    image, image_tokens = model.images([image_path(root, name) for name in names])
    texts = [query.text for query in queries]
    composed = model.queries(image[references], image_tokens[references], texts)
    plain, plain_text = F.normalize(image, dim=-1), F.normalize(model.text_embeddings(texts), dim=-1)
    return {
        "composed": _recalls(composed, model.targets(image), labels),
        "image_only": _recalls(plain[references], plain, labels),
        "text_only": _recalls(plain_text, plain, labels),
        "untrained_sum": _recalls(plain[references] + plain_text, plain, labels),
    }


def _recalls(queries: Tensor, targets: Tensor, labels: Tensor) -> Recalls:
    ranking = (queries @ targets.T).argsort(dim=1, descending=True, stable=True)
    place = (ranking == labels[:, None]).int().argmax(dim=1)
    return Recalls(*(float((place < k).float().mean()) for k in (1, 10, 50)))


def _mean(recalls: Sequence[Recalls]) -> Recalls:
    return Recalls(
        at_1=float(np.mean([one.at_1 for one in recalls])),
        at_10=float(np.mean([one.at_10 for one in recalls])),
        at_50=float(np.mean([one.at_50 for one in recalls])),
    )
