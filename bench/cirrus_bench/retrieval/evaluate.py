"""Measure a bundle's retrieval quality on a benchmark: embed the gallery, encode the queries, rank and score."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cirrus_bench.measure import this_machine
from cirrus_bench.retrieval.datasets import DatasetError, DatasetName, Query, Task
from cirrus_bench.retrieval.preflight import check_evaluable, check_rerankable, has_ground_truth
from cirrus_bench.retrieval.protocols import PROTOCOLS, leaves_reference_out
from cirrus_bench.retrieval.ranked import Ranked
from cirrus_bench.retrieval.report import Evaluation, RetrievalReport, Score
from cirrus_bench.retrieval.rerank import reranked
from cirrus_client.bundle import Bundle, BundleSpec, CaptionJoin
from cirrus_client.encoders import ImageInput, LocalEncoder
from cirrus_client.encoders.remembering import RememberingEncoder
from cirrus_client.gallery import FolderSource, embed_gallery, read_gallery
from cirrus_client.index.faiss_build import index_in_memory
from cirrus_client.index.faiss_index import FaissIndex
from cirrus_client.names import EnsembleName
from cirrus_client.plans import graph_sha256
from cirrus_export.gate.probe import fashioniq_text

_BATCH = 32
_REMEMBERED_BYTES = 4 * 2**30
log = logging.getLogger(__name__)


def evaluate(
    bundle: Bundle,
    dataset: DatasetName,
    tasks: Sequence[Task],
    *,
    root: Path,
    split: str,
    work: Path,
    rerank: int | None = None,
) -> tuple[Evaluation, list[Path]]:
    """Evaluate a bundle on the tasks of a split; return the scores, and the submission files that were written.

    A split with ground truth is scored with the benchmark's own metrics. A test split becomes submission files.
    root: the benchmark's folder. work: where embedded galleries are kept; an interrupted run is resumed. rerank: how
    many of the best the bundle's reranker orders anew, or None. Up to 4 GiB of encoded candidates are remembered.
    Raises DatasetError if an image of the benchmark is broken, and what `check_evaluable` raises before any work.
    """
    check_evaluable(bundle.spec, dataset, tasks)
    encoder = LocalEncoder(bundle)
    remembering = RememberingEncoder(encoder, max_bytes=_REMEMBERED_BYTES)
    scores: list[Score] = []
    written: list[Path] = []
    query_s = image_s = 0.0
    embedded = queries = 0
    for task in tasks:
        log.info(
            "%s: %s: embedding %d images, then encoding %d queries",
            bundle.spec.name,
            task.name,
            len(task.gallery),
            len(task.queries),
        )
        started = time.perf_counter()
        index, new = _embed(encoder, task, root, work / task.name)
        image_s, embedded = image_s + time.perf_counter() - started, embedded + new
        _load_graphs(encoder, task, dataset)
        started = time.perf_counter()
        ranked = _encode(encoder, task, index, dataset)
        if rerank is not None:
            texts = [query_texts(query, bundle.spec.caption_join, dataset)[0] for query in ranked.queries]
            ranked = reranked(ranked, remembering, texts, rerank)
        query_s, queries = query_s + time.perf_counter() - started, queries + len(ranked.queries)
        if has_ground_truth(task):
            scores += [
                Score(task=task.name, metric=metric, value=float(values.mean()))
                for metric, values in PROTOCOLS[dataset].score(ranked)
            ]
        elif (submission := PROTOCOLS[dataset].submission) is not None:
            folder = work if rerank is None else work / f"rerank-{rerank}"
            folder.mkdir(parents=True, exist_ok=True)
            written += submission.write(ranked, folder)
    evaluation = Evaluation(
        bundle=bundle.spec.name,
        recipe=bundle.spec.recipe,
        dataset=dataset.value,
        split=split,
        rerank=rerank,
        scores=tuple(scores),
        size_bytes=sum(path.stat().st_size for path in (bundle.root / "graphs").iterdir()),
        vectors=bundle.spec.space.vectors,
        query_ms=1000 * query_s / queries,
        image_ms=1000 * image_s / embedded if embedded else None,
    )
    return evaluation, written


def evaluate_all(
    bundles: Sequence[Bundle],
    dataset: DatasetName,
    tasks: Sequence[Task],
    *,
    root: Path,
    split: str,
    work: Path,
    rerank: int | None = None,
) -> tuple[RetrievalReport | None, list[Path]]:
    """Evaluate several bundles side by side; return their report, and the submission files that were written.

    rerank: see `evaluate`; a bundle that has a reranker is evaluated without it and with it. The report is None for a
    test split without ground truth. Every bundle is checked before the first is evaluated. Raises what `evaluate`
    raises, and what `check_rerankable` raises.
    """
    for bundle in bundles:
        check_evaluable(bundle.spec, dataset, tasks)
    if rerank is not None:
        check_rerankable([bundle.spec for bundle in bundles], dataset)
    evaluations: list[Evaluation] = []
    submissions: list[Path] = []
    for bundle in bundles:
        folder = work / _gallery_name(bundle.spec) / f"{dataset}-{split}"
        with_reranker = rerank is not None and EnsembleName.SCORE_CANDIDATE in bundle.spec.ensembles
        for count in (None, rerank) if with_reranker else (None,):
            evaluation, written = evaluate(bundle, dataset, tasks, root=root, split=split, work=folder, rerank=count)
            evaluations.append(evaluation)
            submissions += written
    if not all(has_ground_truth(task) for task in tasks):
        return None, submissions
    return RetrievalReport(evaluations=tuple(evaluations), machine=this_machine()), submissions


def _gallery_name(spec: BundleSpec) -> str:
    """Return a name for what a bundle embeds: bundles of one space, like two precisions, do so by different graphs."""
    steps = spec.ensembles[EnsembleName.ENCODE_TARGET].steps
    graphs = "".join(graph_sha256(spec, step.model) for step in steps if step.model in spec.graphs)
    return f"{spec.name}-{spec.space.fingerprint[:12]}-{hashlib.sha256(graphs.encode()).hexdigest()[:12]}"


def query_texts(query: Query, join: CaptionJoin, dataset: DatasetName) -> list[str]:
    """Return the texts of a query as the recipe's published evaluation words them; see `CaptionJoin`.

    Where there are several texts, the query's embedding is the normalised mean of theirs.
    """
    if len(query.captions) == 2:
        return _two_captions(*query.captions, join)
    caption = query.captions[0] if query.captions else ""
    if join is CaptionJoin.JOINED and dataset is DatasetName.CIRR:
        return [f"find a photo that {caption.lower()}"]
    if join is CaptionJoin.JOINED and query.shared_concept is not None:
        return [f"{query.shared_concept.lower()} but {caption.lower()}"]
    return [caption]


def _two_captions(first: str, second: str, join: CaptionJoin) -> list[str]:
    if join is CaptionJoin.JOINED:
        return [f"{first} and {second}"]
    if join is CaptionJoin.SECOND_FIRST:
        return [f"{second} and {first}"]
    if join is CaptionJoin.BOTH_ORDERS:
        first, second = first.strip(".?, "), second.strip(".?, ")
        return [f"{first} and {second}", f"{second} and {first}"]
    return [fashioniq_text((first, second))]


def _embed(encoder: LocalEncoder, task: Task, root: Path, out: Path) -> tuple[FaissIndex, int]:
    """Return the index of a task's gallery, and how many of its images were embedded by this call."""
    paths = [str(image.path.relative_to(root)) for image in task.gallery]
    summary = embed_gallery(FolderSource(root, only=paths), out, encoder)
    if summary.rejected:
        first = summary.rejected[0]
        raise DatasetError(
            f"{task.name}: {len(summary.rejected)} images of the gallery are broken, the first {first.file.path}: "
            f"{first.reason}; a ranking without them would not be comparable"
        )
    gallery = read_gallery(out)
    row_of = {path: row for row, path in enumerate(gallery.paths)}
    return index_in_memory(gallery.space, gallery.embeddings[[row_of[path] for path in paths]])[0], summary.new


def _load_graphs(encoder: LocalEncoder, task: Task, dataset: DatasetName) -> None:
    """Encode one query, so that the time of the others does not include loading."""
    text = query_texts(task.queries[0], encoder.bundle.spec.caption_join, dataset)[:1]
    encoder.encode_queries(*_inputs(encoder, task.queries[:1], text))


def _encode(encoder: LocalEncoder, task: Task, index: FaissIndex, dataset: DatasetName) -> Ranked:
    spec = encoder.bundle.spec
    join = spec.caption_join
    queries = tuple(_one_per_caption(task.queries)) if join is CaptionJoin.EACH else task.queries
    wordings = [query_texts(query, join, dataset) for query in queries]
    total = np.zeros((len(queries), encoder.space.dim), dtype=np.float32)
    for wording in range(len(wordings[0])):
        for start in range(0, len(queries), _BATCH):
            part = slice(start, start + _BATCH)
            texts = [of_query[wording] for of_query in wordings[part]]
            total[part] += encoder.encode_queries(*_inputs(encoder, queries[part], texts))
    embeddings = total / np.linalg.norm(total, axis=1, keepdims=True)
    return Ranked(task, queries, index, embeddings, without_reference=leaves_reference_out(spec, dataset))


def _inputs(
    encoder: LocalEncoder, queries: Sequence[Query], texts: list[str]
) -> tuple[list[ImageInput | None], list[str | None]]:
    """Return images and texts of queries, without the images where the recipe answers texts alone."""
    with_image = EnsembleName.ENCODE_QUERY in encoder.bundle.spec.ensembles
    return [query.image if with_image else None for query in queries], list(texts)


def _one_per_caption(queries: Sequence[Query]) -> Iterator[Query]:
    """Split queries of several captions; a query of one caption stays as it is, and so does its id."""
    for query in queries:
        if len(query.captions) < 2:
            yield query
            continue
        for number, caption in enumerate(query.captions):
            yield replace(query, id=f"{query.id}-{number}", captions=(caption,))
