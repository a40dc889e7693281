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
