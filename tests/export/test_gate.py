"""Each figure of the gate is of the original and of the export, and fails an export alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from cirrus_client.bundle import Precision
from cirrus_client.ensemble import Arrays
from cirrus_client.names import EnsembleName
from cirrus_client.records import Record
from cirrus_export.gate import fidelity
from cirrus_export.gate.fidelity import RetrievalFidelity, StageFidelity
from cirrus_export.gate.rerank_fidelity import RerankFidelity, rerank_failures
from cirrus_export.gate.text_cuts import CutFidelity, cut_failures
from cirrus_export.gate.thresholds import THRESHOLDS, Thresholds
from cirrus_export.graph import Graph, vector

Failures = Callable[[Sequence[Record], Thresholds], Sequence[str]]
PAGE = Path(__file__).parents[2] / "docs" / "export-your-checkpoint.md"
QUERY = EnsembleName.ENCODE_QUERY
STAGE = StageFidelity(graph="gallery", output="y", items=8, cosine_min=1, max_abs=0, batch_cosine_min=1)
RETRIEVAL = RetrievalFidelity(
    ensemble=QUERY,
    queries=24,
    gallery=64,
    query_cosine_min=1,
    target_cosine_min=1,
    top10_agreement=1,
    recall_at_10_original=0.5,
    recall_at_10_exported=0.5,
)
CUT = CutFidelity(ensemble=QUERY, length=16, items=8, cosine_min=1, cut_cosine_min=1)
RERANKER = RerankFidelity(queries=8, candidates=20, cosine_min=1, max_abs=0, top10_agreement=1)
CHECKS: Sequence[tuple[Record, Failures, Sequence[str]]] = (
    (STAGE, fidelity._stage_failures, ("cosine_min", "batch_cosine_min")),
    (RETRIEVAL, fidelity._retrieval_failures, ("query_cosine_min", "target_cosine_min", "top10_agreement")),
    (CUT, lambda cuts, limits: cut_failures(tuple(cuts), limits), ("cosine_min", "cut_cosine_min")),
    (RERANKER, lambda found, limits: rerank_failures(found[0], limits), ("cosine_min", "top10_agreement")),
)


@pytest.mark.parametrize(
    ("measured", "failures", "figure"), [(*check, figure) for *check, figures in CHECKS for figure in figures]
)
def test_a_figure_under_its_threshold_fails_alone(measured: Record, failures: Failures, figure: str) -> None:
    for limits in THRESHOLDS.values():
        least = limits.top10_agreement if figure == "top10_agreement" else limits.cosine_min
        for value, missed in ((least, 0), (least - 1e-6, 1), (math.nan, 1)):
            assert len(failures([measured.model_copy(update={figure: value})], limits)) == missed


def test_a_recall_that_moved_up_or_down_fails_alone() -> None:
    for limits in THRESHOLDS.values():
        for moved, missed in ((0.9, 0), (1.1, 1), (-1.1, 1), (math.nan, 1)):
            recall = 0.5 + moved * limits.recall_at_10_delta
            found = [RETRIEVAL.model_copy(update={"recall_at_10_exported": recall})]
            assert len(fidelity._retrieval_failures(found, limits)) == missed


def test_the_page_says_what_every_precision_is_held_to() -> None:
    page = PAGE.read_text()
    for precision in Precision:
        limits = THRESHOLDS[precision]
        points = 100 * limits.recall_at_10_delta
        reached = f"{limits.cosine_min:g} | {100 * limits.top10_agreement:g}%"
        assert f"| {precision} | {reached} | {points:g} point{'s' if points != 1 else ''} |\n" in page


def test_rankings_of_the_export_are_compared_with_the_originals() -> None:
    chance = np.random.default_rng(0)
    originals = [chance.standard_normal((count, 8), dtype=np.float32) for count in (12, 40)]
    exported = [value + 0.3 * chance.standard_normal(value.shape, dtype=np.float32) for value in originals]
    labels = chance.integers(0, 40, 12)
    cosines = [
        min(float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(*pair, strict=True))
        for pair in zip(originals, exported, strict=True)
    ]
    best = [[set(row[:10]) for row in np.argsort(-queries @ targets.T)] for queries, targets in (originals, exported)]
    found = fidelity._compare_rankings(QUERY, originals[0], exported[0], originals[1], exported[1], labels)
    assert (found.query_cosine_min, found.target_cosine_min) == pytest.approx(tuple(cosines), abs=1e-5)
    assert found.top10_agreement == pytest.approx(np.mean([len(a & b) / 10 for a, b in zip(*best, strict=True)]))
    recalls = [np.mean([label in row for label, row in zip(labels, rows, strict=True)]) for rows in best]
    assert (found.recall_at_10_original, found.recall_at_10_exported) == pytest.approx(recalls)
    assert len({*recalls, *cosines, found.top10_agreement}) == 5, "each figure of this test is another one"


@pytest.mark.parametrize(("wrong", "cosines"), [("always", (-1, 1)), ("alone", (1, -1)), ("in a batch", (-1, -1))])
def test_a_stage_is_compared_with_the_original_and_a_batch_with_its_items(wrong: str, cosines: tuple) -> None:
    graph = Graph("gallery", nn.Identity(), inputs=(vector("x", 8),), outputs=(vector("y", 8),))

    def engine(inputs: Arrays) -> Arrays:
        is_wrong = wrong == "always" or (len(inputs["x"]) == 1) == (wrong == "alone")
        return {"y": -inputs["x"] if is_wrong else inputs["x"]}

    given = {"x": np.random.default_rng(0).standard_normal((4, 8), dtype=np.float32)}
    (found,) = fidelity._stage(graph, engine, given)
    assert (found.cosine_min, found.batch_cosine_min) == pytest.approx(cosines)
