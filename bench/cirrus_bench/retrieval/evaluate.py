"""Retrieval quality of a bundle on a benchmark: embed its gallery, encode its queries, rank, and count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cirrus_bench.retrieval import metrics
from cirrus_bench.retrieval.datasets import DatasetError, DatasetName, Query, Task
from cirrus_bench.retrieval.submission import write_circo, write_cirr_recall, write_cirr_recall_subset
from cirrus_client.bundle import Bundle, CaptionJoin
from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.protocol import Embeddings, ImageInput
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import FaissIndex
from cirrus_client.names import EnsembleName
from cirrus_client.records import Record
from cirrus_export.gate.probe import fashioniq_text

_BATCH = 32
_SBIR_QUERIES_AT_ONCE = 256


class Score(Record):
    """One metric of one task, as a share of 1."""

    task: str
    metric: str
    value: float


class Evaluation(Record):
    """What a bundle reaches on a benchmark, and what it costs.

    size_bytes: of every graph. query_ms, image_ms: mean time to encode one, on this machine, in batches; image_ms is
    None where the gallery was embedded by an earlier run.
    """

    bundle: str
    recipe: str
    dataset: str
    split: str
    scores: tuple[Score, ...]
    size_bytes: int
    vectors: int
    query_ms: float
    image_ms: float | None

    def score(self, metric: str) -> float:
        """Return the mean of a metric over the tasks."""
        return float(np.mean([score.value for score in self.scores if score.metric == metric]))


@dataclass(frozen=True)
class Ranked:
    """A task's queries, encoded, over its gallery's index."""

    task: Task
    queries: tuple[Query, ...]
    index: FaissIndex
    embeddings: Embeddings

    def ranking(self, k: int) -> metrics.Ranking:
        """Return the k best rows of every query."""
        return self.index.search(self.embeddings, k).rows


def evaluate(
    bundle: Bundle, dataset: DatasetName, tasks: Sequence[Task], *, root: Path, split: str, work: Path
) -> tuple[Evaluation, list[Path]]:
    """Return the benchmark's own metrics, and the submission files that were written where there is no ground truth.

    work: where embedded galleries are kept; an interrupted run is resumed. Raises DatasetError if an image of the
    benchmark is broken, and UnsupportedQuery where the recipe has no queries of the benchmark's kind.
    """
    encoder = LocalEncoder(bundle)
    scores: list[Score] = []
    written: list[Path] = []
    query_s = image_s = 0.0
    embedded = queries = 0
    for task in tasks:
        started = time.perf_counter()
        index, new = _embedded(encoder, task, root, work / task.name)
        image_s, embedded = image_s + time.perf_counter() - started, embedded + new
        first = query_texts(task.queries[0], bundle.spec.caption_join, dataset)[:1]
        encoder.encode_queries(*_inputs(encoder, task.queries[:1], first))  # load the graphs
        started = time.perf_counter()
        ranked = _encoded(encoder, task, index, dataset)
        query_s, queries = query_s + time.perf_counter() - started, queries + len(ranked.queries)
        if all(query.targets for query in ranked.queries):
            scores += [
                Score(task=task.name, metric=metric, value=float(values.mean()))
                for metric, values in _METRICS[dataset](ranked)
            ]
        else:
            written += _submission(dataset, ranked, work)
    sizes = [path.stat().st_size for path in (bundle.root / "graphs").iterdir()]
    evaluation = Evaluation(
        bundle=bundle.spec.name,
        recipe=bundle.spec.recipe,
        dataset=str(dataset),
        split=split,
        scores=tuple(scores),
        size_bytes=sum(sizes),
        vectors=bundle.spec.space.vectors,
        query_ms=1000 * query_s / queries,
        image_ms=1000 * image_s / embedded if embedded else None,
    )
    return evaluation, written


def query_texts(query: Query, join: CaptionJoin, dataset: DatasetName) -> list[str]:
    """Return the texts of a query, whose embeddings are averaged, as the recipe's published evaluation words them."""
    if len(query.captions) == 2:
        first, second = (caption.strip(".?, ") for caption in query.captions)
        if join is CaptionJoin.BOTH_ORDERS:
            return [f"{first} and {second}", f"{second} and {first}"]
        if join is CaptionJoin.SECOND_FIRST:
            return [f"{second} and {first}"]
        return [fashioniq_text(query.captions)]
    caption = query.captions[0] if query.captions else ""
    if query.shared_concept is not None and join is CaptionJoin.CAPITALISED and dataset is DatasetName.CIRCO:
        return [f"{query.shared_concept.lower()} but {caption.lower()}"]
    return [caption]


def _embedded(encoder: LocalEncoder, task: Task, root: Path, out: Path) -> tuple[FaissIndex, int]:
    paths = [str(image.path.relative_to(root)) for image in task.gallery]
    summary = embed_gallery(root, out, encoder, only=paths)
    if summary.rejected:
        first = summary.rejected[0]
        raise DatasetError(
            f"{task.name}: {len(summary.rejected)} images of the gallery are broken, the first {first.file.path}: "
            f"{first.reason}; a ranking without them would not be comparable"
        )
    gallery = read_gallery(out)
    place = {path: row for row, path in enumerate(gallery.paths)}
    return FaissIndex(gallery.space, gallery.embeddings[[place[path] for path in paths]]), summary.new


def _encoded(encoder: LocalEncoder, task: Task, index: FaissIndex, dataset: DatasetName) -> Ranked:
    join = encoder.bundle.spec.caption_join
    queries = task.queries
    if join is CaptionJoin.EACH:
        queries = tuple(_each(queries))
    wordings = [query_texts(query, join, dataset) for query in queries]
    total = np.zeros((len(queries), encoder.space.dim), dtype=np.float32)
    for wording in range(len(wordings[0])):
        for start in tqdm(range(0, len(queries), _BATCH), desc=f"{task.name} queries", unit="batch"):
            part = slice(start, start + _BATCH)
            texts = [of_query[wording] for of_query in wordings[part]]
            total[part] += encoder.encode_queries(*_inputs(encoder, queries[part], texts))
    return Ranked(task, queries, index, total / np.linalg.norm(total, axis=1, keepdims=True))


def _inputs(
    encoder: LocalEncoder, queries: Sequence[Query], texts: list[str]
) -> tuple[list[ImageInput | None], list[str | None]]:
    """Images and texts of queries; the text alone where the recipe has no queries with an image."""
    with_image = EnsembleName.ENCODE_QUERY in encoder.bundle.spec.ensembles
    return [query.image if with_image else None for query in queries], list(texts)


def _each(queries: Sequence[Query]) -> Iterator[Query]:
    for query in queries:
        for number, caption in enumerate(query.captions):
            yield replace(query, id=f"{query.id}-{number}", captions=(caption,))


Metrics = list[tuple[str, metrics.Values]]


def _fashioniq(ranked: Ranked) -> Metrics:
    ranking = ranked.ranking(50)
    targets = [query.targets[0] for query in ranked.queries]
    return [(f"Recall@{k}", metrics.recall_at_k(ranking, targets, _upto(k, ranking))) for k in (10, 50)]


def _upto(k: int, ranking: metrics.Ranking) -> int:
    """A gallery of fewer images than a metric looks at is looked at whole."""
    return min(k, ranking.shape[1])


def _cirr(ranked: Ranked) -> Metrics:
    targets = [query.targets[0] for query in ranked.queries]
    subsets = [query.subset for query in ranked.queries]
    ranking = _without_reference(ranked)
    found: Metrics = [(f"Recall@{k}", metrics.recall_at_k(ranking, targets, _upto(k, ranking))) for k in (1, 5, 10, 50)]
    of_subset: Metrics = [
        (f"Recall_subset@{k}", metrics.subset_recall_at_k(ranking, targets, subsets, k)) for k in (1, 2, 3)
    ]
    average = (found[1][1] + of_subset[0][1]) / 2
    return [*found, *of_subset, ("Avg(R@5, R_subset@1)", average)]


def _circo(ranked: Ranked) -> Metrics:
    ranking = ranked.ranking(50)
    truths = [query.targets for query in ranked.queries]
    targets = [truth[0] for truth in truths]
    maps: Metrics = [
        (f"mAP@{k}", metrics.average_precision_at_k(ranking, truths, _upto(k, ranking))) for k in (5, 10, 25, 50)
    ]
    return maps + [(f"Recall@{k}", metrics.recall_at_k(ranking, targets, _upto(k, ranking))) for k in (5, 10, 25, 50)]


def _sbir(ranked: Ranked) -> Metrics:
    """All of Sketchy's, TU-Berlin's and QuickDraw's; papers report different ones of them."""
    size = len(ranked.index)
    collected: dict[str, list[metrics.Values]] = {}
    for start in range(0, len(ranked.queries), _SBIR_QUERIES_AT_ONCE):
        part = slice(start, start + _SBIR_QUERIES_AT_ONCE)
        rows = ranked.index.search(ranked.embeddings[part], size).rows
        truths = [query.targets for query in ranked.queries[part]]
        for metric, values in (
            *((f"P@{k}", metrics.precision_at_k(rows, truths, min(k, size))) for k in (50, 100, 200)),
            ("mAP@200", metrics.average_precision_at_k(rows, truths, min(200, size))),
            ("mAP@all", metrics.average_precision_at_k(rows, truths, size)),
            ("mAP@200 as published", metrics.trapezoidal_average_precision_at_k(rows, truths, min(200, size))),
            ("mAP@all as published", metrics.trapezoidal_average_precision_at_k(rows, truths, size)),
        ):
            collected.setdefault(metric, []).append(values)
    return [(metric, np.concatenate(values)) for metric, values in collected.items()]


_METRICS: dict[DatasetName, Callable[[Ranked], Metrics]] = {
    DatasetName.FASHIONIQ: _fashioniq,
    DatasetName.CIRR: _cirr,
    DatasetName.CIRCO: _circo,
    DatasetName.SKETCHY: _sbir,
    DatasetName.TUBERLIN: _sbir,
    DatasetName.QUICKDRAW: _sbir,
}


def _without_reference(ranked: Ranked) -> metrics.Ranking:
    references = [query.reference for query in ranked.queries if query.reference is not None]
    return metrics.without_reference(ranked.ranking(len(ranked.index)), references)


def _submission(dataset: DatasetName, ranked: Ranked, work: Path) -> list[Path]:
    ids = [image.id for image in ranked.task.gallery]
    pairs = {int(query.id): query for query in ranked.queries}
    work.mkdir(parents=True, exist_ok=True)
    if dataset is DatasetName.CIRR:
        ranking = _without_reference(ranked)
        of_subset = metrics.within_subset(ranking, [query.subset for query in ranked.queries])
        recall, subset = (work / f"cirr_test_{metric}.json" for metric in ("recall", "recall_subset"))
        write_cirr_recall(
            recall,
            {pair: [ids[row] for row in rows[:50]] for pair, rows in zip(pairs, ranking, strict=True)},
            references={pair: ids[query.reference] for pair, query in pairs.items() if query.reference is not None},
        )
        write_cirr_recall_subset(
            subset,
            {pair: [ids[row] for row in rows[:3]] for pair, rows in zip(pairs, of_subset, strict=True)},
            subsets={pair: [ids[row] for row in query.subset] for pair, query in pairs.items()},
        )
        return [recall, subset]
    if dataset is DatasetName.CIRCO:
        path = work / "circo_test.json"
        ranking = ranked.ranking(50)
        write_circo(path, {pair: [int(ids[row]) for row in rows] for pair, rows in zip(pairs, ranking, strict=True)})
        return [path]
    raise DatasetError(f"{dataset}: this split has no ground truth, and no test server takes a submission; use val")
