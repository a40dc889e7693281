"""The retrieval bench's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cirrus_bench.report import Report
from cirrus_client.records import Record


class Score(Record):
    """One metric of one task, as a share of 1."""

    task: str
    metric: str
    value: float


class Evaluation(Record):
    """The scores of one bundle on one split, and what encoding costs.

    rerank: how many of a query's best were re-ranked, or None. scores: empty for a test split without ground truth.
    size_bytes: of all graphs. vectors: per gallery image. query_ms, image_ms: mean milliseconds per query, re-ranking
    included, and per image, decoding included, in batches on this machine; image_ms is None where an earlier run
    embedded the gallery.
    """

    bundle: str
    recipe: str
    dataset: str
    split: str
    rerank: int | None = None
    scores: tuple[Score, ...]
    size_bytes: int
    vectors: int
    query_ms: float
    image_ms: float | None

    def score(self, metric: str) -> float:
        """Return the mean of a metric over the tasks."""
        return float(np.mean([score.value for score in self.scores if score.metric == metric]))


class RetrievalReport(Report):
    """Evaluations of several bundles on one split, side by side."""

    file_name: ClassVar[str] = "retrieval"

    evaluations: tuple[Evaluation, ...]

    def markdown(self) -> str:
        """Render one row per bundle, with each metric in percent as the mean over the benchmark's tasks."""
        first = self.evaluations[0]
        names = list(dict.fromkeys(score.metric for score in first.scores))
        lines = [
            f"# Retrieval on {first.dataset}, split {first.split}",
            "",
            f"| bundle | recipe |{''.join(f' {name} |' for name in names)} graphs, MB | vectors per image "
            "| ms per query | ms per image |",
            "|---|---|" + "--:|" * (len(names) + 4),
            *(_row(evaluation, names) for evaluation in self.evaluations),
            "",
            f"Times are means of one run and include decoding. {self.machine}",
        ]
        return "\n".join(lines) + "\n"


def _row(evaluation: Evaluation, names: Sequence[str]) -> str:
    scores = "".join(f" {evaluation.score(name):.2%} |" for name in names)
    best = "" if evaluation.rerank is None else f", best {evaluation.rerank} re-ranked"
    image = "cached" if evaluation.image_ms is None else f"{evaluation.image_ms:.1f}"
    return (
        f"| {evaluation.bundle}{best} | {evaluation.recipe} |{scores} {evaluation.size_bytes / 1e6:.1f} | "
        f"{evaluation.vectors} | {evaluation.query_ms:.1f} | {image} |"
    )
