"""Write predictions for the test servers of CIRR and CIRCO, after checking them against the servers' rules."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cirrus_bench.retrieval.datasets import Task
from cirrus_client.errors import CirrusError
from cirrus_client.files import write_atomically

_CIRR_RECALL_NAMES = 50
_CIRR_SUBSET_NAMES = 3
_CIRR_LIMIT_BYTES = 5_000_000
_CIRCO_IDS = 50
_CIRCO_QUERIES = 800


class SubmissionError(CirrusError):
    """Predictions that a test server would reject or misread."""


def check_cirr_task(task: Task, without_reference: bool) -> None:
    """Check that a CIRR test split can become a submission.

    Raises SubmissionError if the gallery has too few images for a ranking of 50.
    """
    _check_gallery(task, _CIRR_RECALL_NAMES + without_reference)


def check_circo_task(task: Task, without_reference: bool) -> None:
    """Check that a CIRCO test split can become a submission.

    Raises SubmissionError if the query ids are not 0 to 799, or the gallery has too few images for a ranking of 50.
    """
    _check_gallery(task, _CIRCO_IDS + without_reference)
    _check_circo_queries([int(query.id) for query in task.queries])


def write_cirr_recall(path: Path, predictions: Mapping[int, Sequence[str]], *, references: Mapping[int, str]) -> None:
    """Write CIRR's submission for Recall@K (Cuberick-Orion/CIRR, Test-split_server.md).

    predictions: pair id -> 50 image names, best first, without the pair's reference. references: pair id -> reference
    name of every pair of the split. Raises SubmissionError.
    """
    _check_pairs(predictions, references)
    for pair, names in predictions.items():
        _check_answers(f"pair {pair}", names, _CIRR_RECALL_NAMES)
        if references[pair] in names:
            raise SubmissionError(f"pair {pair}: its reference {references[pair]} is among the answers; remove it")
    _write_cirr(path, "recall", predictions)


def write_cirr_recall_subset(
    path: Path, predictions: Mapping[int, Sequence[str]], *, subsets: Mapping[int, Sequence[str]]
) -> None:
    """Write CIRR's submission for Recall_subset@K (Cuberick-Orion/CIRR, Test-split_server.md).

    predictions: pair id -> 3 image names, best first. subsets: pair id -> names of the other members of the pair's
    image set, of every pair of the split. Raises SubmissionError.
    """
    _check_pairs(predictions, subsets)
    for pair, names in predictions.items():
        _check_answers(f"pair {pair}", names, _CIRR_SUBSET_NAMES)
        strangers = [name for name in names if name not in subsets[pair]]
        if strangers:
            raise SubmissionError(
                f"pair {pair}: {strangers[0]} is not in its subset {', '.join(subsets[pair])}; rank the subset alone"
            )
    _write_cirr(path, "recall_subset", predictions)


def write_circo(path: Path, predictions: Mapping[int, Sequence[int]]) -> None:
    """Write CIRCO's submission for the test split (miccunifi/CIRCO, README).

    predictions: query id 0 to 799 -> 50 COCO image ids, best first. Raises SubmissionError.
    """
    _check_circo_queries(predictions)
    for query, ids in predictions.items():
        _check_answers(f"query {query}", ids, _CIRCO_IDS)
        strangers = [identity for identity in ids if type(identity) is not int]
        if strangers:
            raise SubmissionError(
                f"query {query}: image ids as int expected, found {strangers[0]!r}; convert them with int()"
            )
    _write(path, {str(query): list(predictions[query]) for query in range(_CIRCO_QUERIES)})


def _check_gallery(task: Task, images: int) -> None:
    if len(task.gallery) < images:
        raise SubmissionError(
            f"{task.name}: a submission needs a gallery of at least {images} images, found {len(task.gallery)}; "
            "download the whole gallery"
        )


def _check_circo_queries(ids: Collection[int]) -> None:
    expected = set(range(_CIRCO_QUERIES))
    lacking, unknown = sorted(expected - set(ids)), sorted(set(ids) - expected)
    if lacking or unknown:
        raise SubmissionError(
            f"CIRCO: query ids 0 to {_CIRCO_QUERIES - 1} expected, found {len(ids)} ids, "
            + (f"without {lacking[0]}" if lacking else f"with {unknown[0]}")
            + "; predict every query of the test split"
        )


def _check_pairs(predictions: Mapping[int, object], expected: Mapping[int, object]) -> None:
    differing = sorted(set(predictions) ^ set(expected))
    if differing:
        raise SubmissionError(
            f"CIRR: predictions of {len(predictions):,} pairs, {len(expected):,} expected; pair {differing[0]} is only "
            f"in the {'predictions' if differing[0] in predictions else 'split'}; predict every pair of the split"
        )


def _check_answers(what: str, answers: Sequence[object], count: int) -> None:
    if len(answers) != count or len(set(answers)) != count:
        raise SubmissionError(
            f"{what}: {count} different images expected, found {len(answers)}, {len(set(answers))} of them different"
        )


def _write_cirr(path: Path, metric: str, predictions: Mapping[int, Sequence[str]]) -> None:
    by_pair = {str(pair): list(names) for pair, names in predictions.items()}
    _write(path, {"version": "rc2", "metric": metric, **by_pair}, limit_bytes=_CIRR_LIMIT_BYTES)


def _write(path: Path, submission: Mapping[str, object], *, limit_bytes: int | None = None) -> None:
    content = json.dumps(submission, separators=(",", ":")).encode()
    if limit_bytes is not None and len(content) > limit_bytes:
        raise SubmissionError(f"{path}: {len(content):,} bytes, the test server takes at most {limit_bytes:,}")
    write_atomically(path, content)
