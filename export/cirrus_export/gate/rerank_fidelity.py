"""Compare a bundle's reranker with the torch original: the scores of each query's candidates, and their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cirrus_client.agreement import agreement, cosine_min
from cirrus_client.encoders.local import LocalEncoder, Pixels
from cirrus_client.names import EnsembleName
from cirrus_client.records import Record
from cirrus_export.gate.probe import Probe
from cirrus_export.gate.thresholds import Thresholds
from cirrus_export.recipes.recipe import Recipe

_QUERIES, _CANDIDATES, _BEST = 8, 20, 10
TokenIds = NDArray[np.int64]
Vectors = NDArray[np.float32]


class RerankFidelity(Record):
    """The scores of the candidates of some queries, by the export and by the original.

    cosine_min: of a query's scores, as one vector. max_abs: of one score. top10_agreement: of the ten best candidates.
    """

    queries: int
    candidates: int
    cosine_min: float
    max_abs: float
    top10_agreement: float


def measure_reranker(
    encoder: LocalEncoder, recipe: Recipe, probe: Probe, *, gallery: Pixels, queries: Pixels, token_ids: TokenIds
) -> RerankFidelity | None:
    """Score gallery images for the probe's first queries, or return None if the bundle has no reranker.

    A query's candidates are its target and the images that follow it in the gallery. gallery, queries: the probe's
    pixels, float32 [N, 3, size_px, size_px] and [Q, 3, size_px, size_px]. token_ids: of its queries, int64 [Q, T].
    """
    if EnsembleName.SCORE_CANDIDATE not in encoder.bundle.spec.ensembles:
        return None
    originals, exported = [], []
    count = min(_CANDIDATES, len(probe.gallery))
    for number, query in enumerate(probe.queries[:_QUERIES]):
        rows = [(query.target + step) % len(probe.gallery) for step in range(count)]
        originals.append(_original(recipe, gallery[rows], queries[number], token_ids[number]))
        exported.append(encoder.scores(query.image, query.text, [probe.gallery[row] for row in rows]))
    expected, found = np.stack(originals), np.stack(exported)
    return RerankFidelity(
        queries=len(expected),
        candidates=count,
        cosine_min=cosine_min(expected, found),
        max_abs=float(np.abs(expected - found).max()),
        top10_agreement=agreement(_best(expected), _best(found)),
    )


def rerank_failures(measured: RerankFidelity | None, thresholds: Thresholds) -> list[str]:
    """Return what missed its threshold, in words."""
    if measured is None:
        return []
    checks: Sequence[tuple[str, float, float]] = (
        ("cosine of the scores", measured.cosine_min, thresholds.cosine_min),
        ("top-10 agreement", measured.top10_agreement, thresholds.top10_agreement),
    )
    return [
        f"reranker: {label} {value:.6f} is under {least}"
        for label, value, least in checks
        if not value >= least  # a NaN fails
    ]


def _original(recipe: Recipe, candidates: Pixels, query: Pixels, token_ids: TokenIds) -> Vectors:
    texts = torch.from_numpy(token_ids)[None]
    with torch.no_grad():
        condition = recipe.condition(torch.from_numpy(query)[None], texts)
        of_query = (tensor.expand(len(candidates), *tensor.shape[1:]) for tensor in (condition, texts))
        scores: Vectors = recipe.score(torch.from_numpy(candidates), *of_query).numpy()
    return scores[:, 0]


def _best(scores: Vectors) -> NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :_BEST]
