"""Refuse an evaluation that can't succeed, before a gallery is embedded for it."""

from __future__ import annotations

from collections.abc import Sequence

from cirrus_bench.retrieval.datasets import DatasetError, DatasetName, Task
from cirrus_bench.retrieval.protocols import PROTOCOLS, leaves_reference_out
from cirrus_client.bundle import BundleSpec
from cirrus_client.errors import UnsupportedQuery
from cirrus_client.names import EnsembleName


def check_evaluable(spec: BundleSpec, dataset: DatasetName, tasks: Sequence[Task]) -> None:
    """Check that a bundle can be evaluated on a benchmark's split.

    Raises DatasetError for a split whose queries have no targets and that no test server takes, and for one where only
    some queries have them; SubmissionError for a test split of which no valid submission can be made;
    UnsupportedQuery for queries without text where the recipe answers texts alone.
    """
    for task in tasks:
        _check_ground_truth(spec, dataset, task)
        if EnsembleName.ENCODE_QUERY not in spec.ensembles and not all(query.captions for query in task.queries):
            raise UnsupportedQuery(
                f"{task.name}: queries of {dataset} are images without a text, and bundle {spec.name} "
                f"({spec.recipe}) answers texts alone; use a bundle with the ensemble {EnsembleName.ENCODE_QUERY}"
            )


def check_rerankable(specs: Sequence[BundleSpec], dataset: DatasetName) -> None:
    """Raise UnsupportedQuery if none of the bundles has a reranker, or the benchmark looks at whole rankings."""
    if not any(EnsembleName.SCORE_CANDIDATE in spec.ensembles for spec in specs):
        named = ", ".join(spec.name for spec in specs)
        raise UnsupportedQuery(f"none of the bundles ({named}) has a reranker: export one with --option reranker=true")
    if PROTOCOLS[dataset].whole_gallery:
        raise UnsupportedQuery(f"{dataset} is scored by whole rankings, which have no best part: leave out --rerank")


def has_ground_truth(task: Task) -> bool:
    """Return whether the queries of a task have targets; a test split's have none."""
    return bool(task.queries[0].targets)


def _check_ground_truth(spec: BundleSpec, dataset: DatasetName, task: Task) -> None:
    with_targets = sum(bool(query.targets) for query in task.queries)
    if with_targets == len(task.queries):
        return
    if with_targets:
        raise DatasetError(
            f"{task.name}: {len(task.queries) - with_targets:,} of {len(task.queries):,} queries have no target; "
            "download the captions again: a split has targets for every query or for none"
        )
    submission = PROTOCOLS[dataset].submission
    if submission is None:
        raise DatasetError(
            f"{task.name}: the queries of this split have no targets, and {dataset} has no test server that takes "
            "predictions; use --split val"
        )
    submission.check(task, leaves_reference_out(spec, dataset))
