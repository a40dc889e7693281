"""The thresholds of the fidelity gate, by precision."""

from __future__ import annotations

from cirrus_client.bundle import Precision
from cirrus_client.records import Record


class Thresholds(Record):
    """What graphs of one precision, or plans compiled from them, must reach."""

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


class TextThresholds(Record):
    """What a suggester of one precision must reach. text_agreement: share of equal texts; None if it is only reported.

    A next token is the best of a ranking of the vocabulary, so below float32 it must agree as often as a top ten. Whole
    texts need not: one token that rounding decides otherwise, between two that are about as likely, changes all that
    follow.
    """

    cosine_min: float
    next_token_agreement: float
    text_agreement: float | None


TEXT_THRESHOLDS = {
    precision: TextThresholds(
        cosine_min=limits.cosine_min,
        next_token_agreement=limits.top10_agreement,
        text_agreement=0.99 if precision is Precision.FP32 else None,
    )
    for precision, limits in THRESHOLDS.items()
}
