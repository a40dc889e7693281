"""Figures and submissions of the benchmarks, compared with brute force over a tiny bundle's embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cirrus_bench.retrieval import evaluate as retrieval_evaluate
from cirrus_bench.retrieval import protocols
from cirrus_bench.retrieval.datasets import DatasetName, Task, read_dataset
from cirrus_bench.retrieval.evaluate import evaluate
from cirrus_client.encoders import LocalEncoder
from cirrus_client.index.faiss_build import index_in_memory
from tests.bench.test_retrieval import bundle, circo, cirr, encoder, fashioniq, images, run, sketches, write
from tests.tiny import write_tiny_reranking_bundle

__all__ = ["bundle", "circo", "cirr", "encoder", "fashioniq", "images", "sketches"]


def ranked(encoder: LocalEncoder, task: Task, texts: list[str], *, reference: bool = True) -> list[list[int]]:
    """Every query's gallery rows, best first. reference: whether the reference image is an answer."""
    targets = encoder.encode_targets([image.path for image in task.gallery])
    queries = encoder.encode_queries([query.image for query in task.queries], texts)
    orders = np.argsort(-(queries @ targets.T), axis=1, kind="stable").tolist()
    return [
        [row for row in order if reference or row != query.reference]
        for query, order in zip(task.queries, orders, strict=True)
    ]


def share(found: list[bool]) -> object:
    return pytest.approx(np.mean(found))


def shuffle_gallery(cirr: Path, split: str) -> None:
    """Put the gallery into an order that is not that of its paths, and give every query a caption of its own."""
    file = cirr / f"cirr/image_splits/split.rc2.{split}.json"
    names = list(json.loads(file.read_text()).items())
    write(file, dict(names[position] for position in np.random.default_rng(0).permutation(len(names))))
    file = cirr / f"cirr/captions/cap.rc2.{split}.json"
    entries = json.loads(file.read_text())
    write(file, [entry | {"caption": f"make it {'very ' * place}blue"} for place, entry in enumerate(entries)])


def test_cirrs_recalls_are_those_of_brute_force(bundle, encoder, cirr, tmp_path) -> None:
    shuffle_gallery(cirr, "val")
    (task,) = read_dataset(DatasetName.CIRR, cirr, "val")
    orders = ranked(encoder, task, [query.captions[0] for query in task.queries], reference=False)
    places = (0, 1, 4, 5, 10)  # first inside and outside of what each recall looks at
    targets = [(order[place],) for order, place in zip(orders, places, strict=True)]
    queries = tuple(replace(query, targets=rows) for query, rows in zip(task.queries, targets, strict=True))
    task = replace(task, queries=queries)
    found, _ = evaluate(bundle, DatasetName.CIRR, [task], root=cirr, split="val", work=tmp_path / "work")
    pairs = list(zip(task.queries, orders, strict=True))
    for k in (1, 5, 10, 50):
        assert found.score(f"Recall@{k}") == share([query.targets[0] in order[:k] for query, order in pairs])
    for k in (1, 2, 3):
        within = [(query, [row for row in order if row in query.subset]) for query, order in pairs]
        assert found.score(f"Recall_subset@{k}") == share([query.targets[0] in order[:k] for query, order in within])


def test_cirrs_submissions_are_best_first(bundle, encoder, cirr, tmp_path) -> None:
    shuffle_gallery(cirr, "test1")
    _, written = run(bundle, DatasetName.CIRR, cirr, "test1", tmp_path / "work")
    recall, subset = (json.loads(path.read_text()) for path in written)
    (task,) = read_dataset(DatasetName.CIRR, cirr, "test1")
    orders = ranked(encoder, task, [query.captions[0] for query in task.queries], reference=False)
    for query, order in zip(task.queries, orders, strict=True):
        assert recall[query.id] == [task.gallery[row].id for row in order[:50]]
        assert subset[query.id] == [task.gallery[row].id for row in order if row in query.subset][:3]


def test_circos_figures_are_those_of_brute_force(bundle, encoder, circo, tmp_path) -> None:
    """Each reference has other truths; mAP is over all of them, recall looks at the annotated one alone."""
    ids = [581 + 7 * number for number in range(55)]
    common = {"relative_caption": "Is Blue", "shared_concept": "a Dress"}
    truths = [[7, 30, 2, 51], [11, 3], [40, 8, 9, 10, 21]]
    write(
        circo / "annotations/val.json",
        [
            {
                "id": number,
                "reference_img_id": ids[number],
                "target_img_id": ids[rows[0]],
                "gt_img_ids": [ids[row] for row in rows],
                **common,
            }
            for number, rows in enumerate(truths)
        ],
    )
    found, _ = run(bundle, DatasetName.CIRCO, circo, "val", tmp_path / "work")
    (task,) = read_dataset(DatasetName.CIRCO, circo, "val")
    orders = ranked(encoder, task, ["Is Blue"] * 3)
    for k in (5, 10, 25, 50):
        precisions = []
        for order, rows in zip(orders, truths, strict=True):
            places = [place for place, row in enumerate(order[:k], start=1) if row in rows]
            precisions.append(sum(n / place for n, place in enumerate(places, start=1)) / min(k, len(rows)))
        assert found.score(f"mAP@{k}") == pytest.approx(np.mean(precisions))
        assert found.score(f"Recall@{k}") == share([rows[0] in o[:k] for o, rows in zip(orders, truths, strict=True)])


def test_two_wordings_of_a_query_are_averaged(bundle, encoder, fashioniq, monkeypatch) -> None:
    """The tiny model is blind to the order of words, so the wordings here are two texts."""
    texts = ["in blue", "with long sleeves"]
    monkeypatch.setattr(retrieval_evaluate, "query_texts", lambda *_: texts)
    (task, *_) = read_dataset(DatasetName.FASHIONIQ, fashioniq, "val")
    pictures = [query.image for query in task.queries]
    total = sum(encoder.encode_queries(pictures, [text] * len(pictures)) for text in texts)
    index = index_in_memory(encoder.space, encoder.encode_targets(pictures))[0]
    found = retrieval_evaluate._encode(encoder, task, index, DatasetName.FASHIONIQ).embeddings
    np.testing.assert_allclose(found, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-6)


def test_sketches_are_scored_alike_in_parts_of_any_size(bundle, sketches, tmp_path, monkeypatch) -> None:
    whole, _ = run(bundle, DatasetName.TUBERLIN, sketches, "zeroshot", tmp_path / "work")
    monkeypatch.setattr(protocols, "_SKETCHES_AT_ONCE", 3)
    in_parts, _ = run(bundle, DatasetName.TUBERLIN, sketches, "zeroshot", tmp_path / "work")
    assert in_parts.scores == whole.scores


@pytest.mark.slow
def test_a_query_is_re_ranked_by_its_own_text(cirr, tmp_path, tmp_path_factory) -> None:
    made = write_tiny_reranking_bundle(tmp_path_factory.mktemp("bundles") / "reranking")
    shuffle_gallery(cirr, "test1")
    (task,) = read_dataset(DatasetName.CIRR, cirr, "test1")
    options = {"root": cirr, "split": "test1", "work": tmp_path / "work", "rerank": 20}
    _, (recall, _) = evaluate(made, DatasetName.CIRR, [task], **options)
    encoder, texts = LocalEncoder(made), [query.captions[0] for query in task.queries]
    for query, text, order in zip(task.queries, texts, ranked(encoder, task, texts, reference=False), strict=True):
        scores = encoder.scores(query.image, text, [task.gallery[row].path for row in order[:20]])
        best = [task.gallery[order[place]].id for place in np.argsort(-scores, kind="stable")]
        assert json.loads(recall.read_text())[query.id][:20] == best
