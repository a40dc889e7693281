"""How well queries at a lower precision find what the original finds, in a gallery that was embedded at float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cirrus_bench.subjects import PRECISIONS, demo_request, kept_bundle
from cirrus_client.agreement import agreement, cosine_min, top
from cirrus_client.bundle import Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.engines import candidates
from cirrus_client.records import Record
from cirrus_demo.probe import rendered_probe
from cirrus_demo.weights import materialise
from cirrus_export.pipeline import export

_QUERIES, _GALLERY = 240, 480


class QueryAgreement(Record):
    """Composed queries of the demo's trained model. top10_agreement, cosine_min: compared with float32 queries."""

    precision: Precision
    queries: int
    gallery: int
    top10_agreement: float
    cosine_min: float


def query_agreement(work: Path) -> tuple[QueryAgreement, ...]:
    """Encode labelled queries at every precision that runs here and search one float32 gallery with them."""
    weights = materialise(work / "weights")
    probe = rendered_probe(queries=_QUERIES, gallery=_GALLERY)
    images, texts = [query.image for query in probe.queries], [query.text for query in probe.queries]
    found: dict[Precision, np.ndarray] = {}
    targets: np.ndarray | None = None
    for precision in PRECISIONS:
        if candidates(precision):
            out = work / f"demo-{precision}"
            bundle = kept_bundle(out) or export(demo_request(weights, out, precision), probe)
            encoder = LocalEncoder(bundle)
            found[precision] = encoder.encode_queries(images, texts)
            targets = encoder.encode_targets(probe.gallery) if targets is None else targets
    assert targets is not None
    first = found[Precision.FP32]
    return tuple(
        QueryAgreement(
            precision=precision,
            queries=len(images),
            gallery=len(probe.gallery),
            top10_agreement=agreement(top(first, targets), top(queries, targets)),
            cosine_min=cosine_min(first, queries),
        )
        for precision, queries in found.items()
    )
