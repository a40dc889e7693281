"""How well two runs of one model agree: by the cosine of their vectors, and by the rankings that follow from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cosine_min(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the smallest cosine between corresponding vectors (the last dimension), computed in float64.

    Scores, one per item ([B, 1]), are compared as one vector. It is NaN if a vector is zero or not finite. Integers
    are ids, which have no direction: their vectors count by the share that is equal.
    """
    if np.issubdtype(left.dtype, np.integer):
        return float((left == right).mean(-1).min())
    width = left.size if left.shape[-1] == 1 else left.shape[-1]
    a = left.reshape(-1, width).astype(np.float64)
    b = right.reshape(-1, width).astype(np.float64)
    with np.errstate(invalid="ignore"):
        cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(cosines.min())


def top(queries: NDArray[np.float32], targets: NDArray[np.float32], k: int = 10) -> NDArray[np.int64]:
    """Return the rows of each query's k best targets, int64 [Q, k], best first; ties go to the lower row.

    queries: [Q, D]. targets: [N, D], or [N, V, D], of which the best vector counts.
    """
    scores = queries @ targets.reshape(-1, targets.shape[-1]).T
    best = scores.reshape(len(queries), len(targets), -1).max(axis=2)
    return np.argsort(-best, axis=1, kind="stable")[:, :k]


def agreement(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Return the mean share of rows that two rankings [Q, k] have in common, whatever their order."""
    shared = [len(set(a) & set(b)) for a, b in zip(left, right, strict=True)]
    return float(np.mean(shared)) / left.shape[1]
