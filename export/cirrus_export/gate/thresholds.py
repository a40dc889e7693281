"""What an export, or a plan compiled from it, must reach."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import Precision
from cirrus_client.records import Record


class Thresholds(Record):
    """What graphs of one precision must reach."""

    cosine_min: float
    top10_agreement: float
    recall_at_10_delta: float


THRESHOLDS = {
    Precision.FP32: Thresholds(cosine_min=0.99999, top10_agreement=0.995, recall_at_10_delta=0.005),
    Precision.FP16: Thresholds(cosine_min=0.999, top10_agreement=0.97, recall_at_10_delta=0.01),
    Precision.BF16: Thresholds(cosine_min=0.99, top10_agreement=0.90, recall_at_10_delta=0.02),
    Precision.INT8: Thresholds(cosine_min=0.99, top10_agreement=0.90, recall_at_10_delta=0.02),
    Precision.FP8: Thresholds(cosine_min=0.98, top10_agreement=0.85, recall_at_10_delta=0.02),
}


def cosine_min(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the smallest cosine between corresponding vectors (last dimension), computed in float64."""
    a = left.reshape(-1, left.shape[-1]).astype(np.float64)
    b = right.reshape(-1, right.shape[-1]).astype(np.float64)
    cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(cosines.min())
