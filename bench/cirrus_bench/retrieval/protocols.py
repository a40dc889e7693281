"""How each benchmark is scored, and which submission its test server takes: one entry of PROTOCOLS per benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cirrus_bench.retrieval import metrics
from cirrus_bench.retrieval.datasets import DatasetName, Task
from cirrus_bench.retrieval.ranked import Ranked
from cirrus_bench.retrieval.submission import (
    check_circo_task,
    check_cirr_task,
    write_circo,
    write_cirr_recall,
    write_cirr_recall_subset,
)
from cirrus_client.bundle import BundleSpec

Metrics = list[tuple[str, metrics.Values]]
"""Names of metrics, each with one value per query."""
_SKETCHES_AT_ONCE = 256


@dataclass(frozen=True)
class Submission:
    """What a test server takes.

    check: raises SubmissionError for a task of which no valid submission can be made; without_reference: whether the
    reference image is no answer. write: writes the files into a folder and returns their paths.
    """

    check: Callable[[Task, bool], None]
    write: Callable[[Ranked, Path], list[Path]]


@dataclass(frozen=True)
class Protocol:
    """The metrics of a benchmark.

    submission: None where no test server takes one. without_reference: whether a query's reference image is no answer.
    whole_gallery: whether the metrics look at all of a ranking, so that there is no best part to re-rank.
    """

    score: Callable[[Ranked], Metrics]
    submission: Submission | None = None
    without_reference: bool = False
    whole_gallery: bool = False


def leaves_reference_out(spec: BundleSpec, dataset: DatasetName) -> bool:
    """Return whether a query's reference image is no answer: on CIRR, and on CIRCO as UNION's code evaluates it."""
    on_circo = dataset is DatasetName.CIRCO and spec.circo_without_reference
    return on_circo or PROTOCOLS[dataset].without_reference


def _score_fashioniq(ranked: Ranked) -> Metrics:
    ranking = ranked.ranking(50)
    targets = [query.targets[0] for query in ranked.queries]
    return [(f"Recall@{k}", metrics.recall_at_k(ranking, targets, _at_most(k, ranking))) for k in (10, 50)]


def _score_cirr(ranked: Ranked) -> Metrics:
    targets = [query.targets[0] for query in ranked.queries]
    subsets = [query.subset for query in ranked.queries]
    ranking = ranked.whole_ranking()
    recalls = {k: metrics.recall_at_k(ranking, targets, _at_most(k, ranking)) for k in (1, 5, 10, 50)}
    subset_recalls = {k: metrics.subset_recall_at_k(ranking, targets, subsets, k) for k in (1, 2, 3)}
    return [
        *((f"Recall@{k}", values) for k, values in recalls.items()),
        *((f"Recall_subset@{k}", values) for k, values in subset_recalls.items()),
        ("Avg(R@5, R_subset@1)", (recalls[5] + subset_recalls[1]) / 2),
    ]


def _score_circo(ranked: Ranked) -> Metrics:
    ranking = ranked.ranking(50)
    truths = [query.targets for query in ranked.queries]
    targets = [truth[0] for truth in truths]
    precisions: Metrics = [
        (f"mAP@{k}", metrics.average_precision_at_k(ranking, truths, _at_most(k, ranking))) for k in (5, 10, 25, 50)
    ]
    recalls: Metrics = [
        (f"Recall@{k}", metrics.recall_at_k(ranking, targets, _at_most(k, ranking))) for k in (5, 10, 25, 50)
    ]
    return precisions + recalls


def _score_sketches(ranked: Ranked) -> Metrics:
    """Compute the metrics of Sketchy, TU-Berlin and QuickDraw; papers report different ones of them."""
    size = len(ranked.index)
    collected: dict[str, list[metrics.Values]] = {}
    for start in range(0, len(ranked.queries), _SKETCHES_AT_ONCE):
        part = slice(start, start + _SKETCHES_AT_ONCE)
        rows = ranked.index.search(ranked.embeddings[part], size).rows
        truths = [query.targets for query in ranked.queries[part]]
        for metric, values in (
            *((f"P@{k}", metrics.precision_at_k(rows, truths, k)) for k in (50, 100, 200)),
            ("mAP@200", metrics.average_precision_at_k(rows, truths, min(200, size))),
            ("mAP@all", metrics.average_precision_at_k(rows, truths, size)),
            ("mAP@200 as published", metrics.trapezoidal_average_precision_at_k(rows, truths, min(200, size))),
            ("mAP@all as published", metrics.trapezoidal_average_precision_at_k(rows, truths, size)),
        ):
            collected.setdefault(metric, []).append(values)
    return [(metric, np.concatenate(values)) for metric, values in collected.items()]


def _submit_cirr(ranked: Ranked, folder: Path) -> list[Path]:
    names = [image.id for image in ranked.task.gallery]
    pairs = {int(query.id): query for query in ranked.queries}
    ranking = ranked.whole_ranking()
    within_subset = metrics.within_subset(ranking, [query.subset for query in ranked.queries])
    recall, subset = (folder / f"cirr_test_{metric}.json" for metric in ("recall", "recall_subset"))
    write_cirr_recall(
        recall,
        {pair: [names[row] for row in rows[:50]] for pair, rows in zip(pairs, ranking, strict=True)},
        references={pair: names[query.reference] for pair, query in pairs.items() if query.reference is not None},
    )
    write_cirr_recall_subset(
        subset,
        {pair: [names[row] for row in rows[:3]] for pair, rows in zip(pairs, within_subset, strict=True)},
        subsets={pair: [names[row] for row in query.subset] for pair, query in pairs.items()},
    )
    return [recall, subset]


def _submit_circo(ranked: Ranked, folder: Path) -> list[Path]:
    ids = [int(image.id) for image in ranked.task.gallery]
    queries = [int(query.id) for query in ranked.queries]
    path = folder / "circo_test.json"
    write_circo(
        path, {query: [ids[row] for row in rows] for query, rows in zip(queries, ranked.ranking(50), strict=True)}
    )
    return [path]


def _at_most(k: int, ranking: metrics.Ranking) -> int:
    """Look at the whole gallery where it has fewer images than the metric looks at."""
    return min(k, ranking.shape[1])


PROTOCOLS: dict[DatasetName, Protocol] = {
    DatasetName.FASHIONIQ: Protocol(_score_fashioniq),
    DatasetName.CIRR: Protocol(_score_cirr, Submission(check_cirr_task, _submit_cirr), without_reference=True),
    DatasetName.CIRCO: Protocol(_score_circo, Submission(check_circo_task, _submit_circo)),
    DatasetName.SKETCHY: Protocol(_score_sketches, whole_gallery=True),
    DatasetName.TUBERLIN: Protocol(_score_sketches, whole_gallery=True),
    DatasetName.QUICKDRAW: Protocol(_score_sketches, whole_gallery=True),
}
