"""Files for the test servers of CIRR and CIRCO, whose test splits have no ground truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cirrus_bench.retrieval.datasets import DatasetError
from cirrus_client.files import write_atomically

_CIRR_NAMES, _CIRR_SUBSET_NAMES, _CIRCO_IDS = 50, 3, 50


def write_cirr(out: Path, best: Mapping[str, Sequence[str]], best_of_subset: Mapping[str, Sequence[str]]) -> list[Path]:
    """Write CIRR's two files, 50 image names a pair id and 3 of its subset. Raises DatasetError for other lengths."""
    written = []
    for metric, names, count in (("recall", best, _CIRR_NAMES), ("recall_subset", best_of_subset, _CIRR_SUBSET_NAMES)):
        for pair, of_pair in names.items():
            _check(f"CIRR pair {pair}", of_pair, count)
        content = {"version": "rc2", "metric": metric, **{pair: list(of_pair) for pair, of_pair in names.items()}}
        written.append(_write(out / f"cirr_test_{metric}.json", content))
    return written


def write_circo(out: Path, best: Mapping[str, Sequence[str]]) -> Path:
    """Write CIRCO's file: query ids "0", "1", ... without a gap, 50 integer image ids each. Raises DatasetError."""
    if set(best) != {str(number) for number in range(len(best))}:
        raise DatasetError(f"CIRCO's submission needs the query ids 0 to {len(best) - 1} without a gap")
    for query, of_query in best.items():
        _check(f"CIRCO query {query}", of_query, _CIRCO_IDS)
    content = {query: [int(name) for name in best[query]] for query in sorted(best, key=int)}
    return _write(out / "circo_test.json", content)


def _check(what: str, names: Sequence[str], count: int) -> None:
    if len(names) != count or len(set(names)) != count:
        raise DatasetError(f"{what}: the test server wants {count} different images, and there are {len(set(names))}")


def _write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content).encode())
    return path
