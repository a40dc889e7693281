"""Submissions are written in the test servers' form, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirrus_bench.retrieval.submission import (
    SubmissionError,
    write_circo,
    write_cirr_recall,
    write_cirr_recall_subset,
)

NAMES = [f"test1-{number}-0-img0" for number in range(60)]
REFERENCES = {12063: NAMES[58], 12064: NAMES[59]}
SUBSETS = {12063: NAMES[:5], 12064: NAMES[5:10]}


def test_cirr_recall_has_version_metric_and_fifty_names_a_pair(tmp_path: Path) -> None:
    write_cirr_recall(tmp_path / "recall.json", {12063: NAMES[:50], 12064: NAMES[5:55]}, references=REFERENCES)
    assert json.loads((tmp_path / "recall.json").read_text()) == {
        "version": "rc2",
        "metric": "recall",
        "12063": NAMES[:50],
        "12064": NAMES[5:55],
    }


def test_cirr_recall_subset_has_three_names_of_the_subset(tmp_path: Path) -> None:
    predictions = {12063: NAMES[2:5], 12064: NAMES[5:8]}
    write_cirr_recall_subset(tmp_path / "subset.json", predictions, subsets=SUBSETS)
    assert json.loads((tmp_path / "subset.json").read_text()) == {
        "version": "rc2",
        "metric": "recall_subset",
        "12063": NAMES[2:5],
        "12064": NAMES[5:8],
    }


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({12063: NAMES[:50]}, "2 expected; pair 12064 is only in the split"),
        ({12063: NAMES[:50], 12064: NAMES[:50], 7: NAMES[:50]}, "pair 7 is only in the predictions"),
        ({12063: NAMES[:50], 12064: NAMES[:49]}, "pair 12064: 50 different images expected, found 49"),
        ({12063: NAMES[:50], 12064: NAMES[:49] + NAMES[:1]}, "found 50, 49 of them different"),
        ({12063: NAMES[:50], 12064: NAMES[10:60]}, f"pair 12064: its reference {NAMES[59]} is among the answers"),
    ],
)
def test_a_cirr_recall_that_the_server_would_misread_is_not_written(
    tmp_path: Path, predictions: dict[int, list[str]], message: str
) -> None:
    with pytest.raises(SubmissionError, match=message):
        write_cirr_recall(tmp_path / "recall.json", predictions, references=REFERENCES)
    assert list(tmp_path.iterdir()) == []


def test_a_cirr_subset_answer_outside_the_subset_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=f"pair 12064: {NAMES[0]} is not in its subset"):
        write_cirr_recall_subset(
            tmp_path / "subset.json", {12063: NAMES[:3], 12064: [*NAMES[5:7], NAMES[0]]}, subsets=SUBSETS
        )
    assert list(tmp_path.iterdir()) == []


def test_a_cirr_file_over_the_servers_limit_is_not_written(tmp_path: Path) -> None:
    # 50 names of 100,007 characters are over 5 MB
    names = [f"{number:07d}{'x' * 100_000}" for number in range(50)]
    with pytest.raises(SubmissionError, match="the test server takes at most 5,000,000"):
        write_cirr_recall(tmp_path / "recall.json", {1: names}, references={1: "reference"})
    assert list(tmp_path.iterdir()) == []


def test_circo_has_every_query_with_fifty_int_ids(tmp_path: Path) -> None:
    predictions = {query: list(range(query, query + 50)) for query in reversed(range(800))}
    write_circo(tmp_path / "circo.json", predictions)
    written = json.loads((tmp_path / "circo.json").read_text())
    assert list(written) == [str(query) for query in range(800)]
    assert written["799"] == list(range(799, 849))


def test_an_earlier_submission_stays_when_the_new_one_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "circo.json"
    path.write_text("earlier")
    with pytest.raises(SubmissionError, match="query 3: 50 different images expected, found 49"):
        write_circo(path, {query: list(range(50 - (query == 3))) for query in range(800)})
    assert path.read_text() == "earlier"


@pytest.mark.parametrize(
    ("queries", "message"),
    [(range(1, 801), "found 800 ids, without 0"), (range(799), "without 799"), (range(801), "with 800")],
)
def test_circo_query_ids_with_a_gap_are_not_written(tmp_path: Path, queries: range, message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        write_circo(tmp_path / "circo.json", {query: list(range(50)) for query in queries})
    assert list(tmp_path.iterdir()) == []


def test_circo_ids_that_are_file_names_are_not_written(tmp_path: Path) -> None:
    names = [f"{number:012d}" for number in range(50)]
    with pytest.raises(SubmissionError, match="query 0: image ids as int expected, found '000000000000'"):
        write_circo(tmp_path / "circo.json", dict.fromkeys(range(800), names))  # type: ignore[arg-type]
