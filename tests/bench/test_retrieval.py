"""Benchmarks in their official files, from folder to table and submission, on a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cirrus_bench.measure import this_machine
from cirrus_bench.retrieval.datasets import DatasetError, DatasetName, Query, read_dataset
from cirrus_bench.retrieval.evaluate import evaluate, evaluate_all, query_texts
from cirrus_bench.retrieval.report import RetrievalReport
from cirrus_bench.retrieval.submission import SubmissionError
from cirrus_client.bundle import Bundle, CaptionJoin
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import UnsupportedQuery
from cirrus_client.names import EnsembleName
from cirrus_export.recipes import recipe_named
from tests.service.test_canary import damaged
from tests.tiny import write_tiny_reranking_bundle


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Bundle) -> Bundle:
    return tiny_bundle


@pytest.fixture(scope="module")
def encoder(bundle: Bundle) -> LocalEncoder:
    return LocalEncoder(bundle)


@pytest.fixture(scope="module")
def images(pictures: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(pictures.iterdir())]


def put(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)


@pytest.fixture
def fashioniq(tmp_path, images) -> Path:
    for kind, offset in (("dress", 0), ("shirt", 15), ("toptee", 30)):
        names = [f"B{offset + number:03d}" for number in range(15)]
        write(tmp_path / f"image_splits/split.{kind}.val.json", names)
        captions = [
            {"candidate": names[number], "target": names[number + 1], "captions": ["Is red.", "has long sleeves"]}
            for number in range(4)
        ]
        write(tmp_path / f"captions/cap.{kind}.val.json", captions)
        for number, name in enumerate(names):
            put(tmp_path / "images" / f"{name}.jpg", images[offset + number])
    return tmp_path


@pytest.fixture
def cirr(tmp_path, images) -> Path:
    names = {f"dev-{number}": f"./dev/dev-{number}.png" for number in range(55)}
    write(tmp_path / "cirr/image_splits/split.rc2.test1.json", names)
    write(tmp_path / "cirr/image_splits/split.rc2.val.json", names)
    entries = [
        {
            "pairid": 100 + number,
            "reference": f"dev-{number}",
            "target_hard": f"dev-{number + 1}",
            "caption": "make it blue",
            "img_set": {"id": 1, "members": [f"dev-{member}" for member in range(number, number + 6)]},
        }
        for number in range(5)
    ]
    write(tmp_path / "cirr/captions/cap.rc2.val.json", entries)
    write(
        tmp_path / "cirr/captions/cap.rc2.test1.json",
        [{key: value for key, value in entry.items() if key != "target_hard"} for entry in entries],
    )
    for number in range(55):
        put(tmp_path / f"dev/dev-{number}.png", images[number])
    return tmp_path


@pytest.fixture
def circo(tmp_path, images) -> Path:
    ids = [581 + 7 * number for number in range(55)]
    records = [{"id": identity, "file_name": f"{identity:012d}.jpg"} for identity in ids]
    write(tmp_path / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"images": records})
    for number, identity in enumerate(ids):
        put(tmp_path / f"COCO2017_unlabeled/unlabeled2017/{identity:012d}.jpg", images[number])
    common = {"relative_caption": "Is Blue", "shared_concept": "a Dress"}
    write(
        tmp_path / "annotations/val.json",
        [{"id": 0, "reference_img_id": ids[0], "target_img_id": ids[1], "gt_img_ids": ids[1:4], **common}],
    )
    write(
        tmp_path / "annotations/test.json",
        [{"id": number, "reference_img_id": ids[number % 55], **common} for number in range(800)],
    )
    return tmp_path


def run(bundle, name: DatasetName, root: Path, split: str, work: Path):
    return evaluate(bundle, name, read_dataset(name, root, split), root=root, split=split, work=work)


def test_fashioniq_is_three_tasks_and_a_table(bundle, encoder, fashioniq, tmp_path) -> None:
    tasks = read_dataset(DatasetName.FASHIONIQ, fashioniq, "val")
    assert [(task.name, len(task.gallery), len(task.queries)) for task in tasks] == [
        ("dress", 15, 4),
        ("shirt", 15, 4),
        ("toptee", 15, 4),
    ]
    found, written = run(bundle, DatasetName.FASHIONIQ, fashioniq, "val", tmp_path / "work")
    assert written == []
    dress = tasks[0]
    queries = encoder.encode_queries([query.image for query in dress.queries], ["Is red and has long sleeves"] * 4)
    order = np.argsort(-(queries @ encoder.encode_targets([image.path for image in dress.gallery]).T), axis=1)[:, :10]
    expected = np.mean([query.targets[0] in rows for query, rows in zip(dress.queries, order, strict=True)])
    assert found.scores[0].metric == "Recall@10"
    assert found.scores[0].value == expected
    assert found.score("Recall@50") == 1.0
    table = RetrievalReport(evaluations=(found,), machine=this_machine()).markdown()
    assert "| Recall@10 | Recall@50 |" in table
    again, _ = run(bundle, DatasetName.FASHIONIQ, fashioniq, "val", tmp_path / "work")
    assert again.scores == found.scores
    assert again.image_ms is None


def test_cirr_leaves_the_reference_out_and_ranks_its_subset(bundle, encoder, cirr, tmp_path) -> None:
    found, _ = run(bundle, DatasetName.CIRR, cirr, "val", tmp_path / "work")
    (task,) = read_dataset(DatasetName.CIRR, cirr, "val")
    assert all(query.reference not in query.subset and len(query.subset) == 5 for query in task.queries)
    queries = encoder.encode_queries([query.image for query in task.queries], ["make it blue"] * 5)
    scores = queries @ encoder.encode_targets([image.path for image in task.gallery]).T
    hits = 0.0
    for query, row in zip(task.queries, scores, strict=True):
        hits += max(query.subset, key=lambda member: row[member]) == query.targets[0]
    assert found.score("Recall_subset@1") == pytest.approx(hits / 5)
    average = (found.score("Recall@5") + found.score("Recall_subset@1")) / 2
    assert found.score("Avg(R@5, R_subset@1)") == pytest.approx(average)


def test_cirrs_test_split_becomes_the_two_submission_files(bundle, cirr, tmp_path) -> None:
    found, written = run(bundle, DatasetName.CIRR, cirr, "test1", tmp_path / "work")
    assert found.scores == ()
    recall, subset = (json.loads(path.read_text()) for path in written)
    assert (recall.pop("version"), recall.pop("metric")) == ("rc2", "recall")
    assert (subset.pop("version"), subset.pop("metric")) == ("rc2", "recall_subset")
    assert set(recall) == set(subset) == {"100", "101", "102", "103", "104"}
    assert all(len(set(names)) == 50 and f"dev-{int(pair) - 100}" not in names for pair, names in recall.items())
    assert all(len(set(names)) == 3 for names in subset.values())


@pytest.mark.slow
def test_circo_has_several_truths_and_a_submission(bundle, circo, tmp_path) -> None:
    found, _ = run(bundle, DatasetName.CIRCO, circo, "val", tmp_path / "work")
    assert 0 < found.score("mAP@50") <= 1
    (task,) = read_dataset(DatasetName.CIRCO, circo, "val")
    assert task.queries[0].targets == (1, 2, 3)
    _, (submission,) = run(bundle, DatasetName.CIRCO, circo, "test", tmp_path / "work2")
    content = json.loads(submission.read_text())
    assert list(content) == [str(number) for number in range(800)]
    assert all(len(set(ids)) == 50 and all(isinstance(i, int) for i in ids) for ids in content.values())


@pytest.fixture
def sketches(tmp_path, images) -> Path:
    lists = tmp_path / "zeroshot"
    photos = [f"photos/{number}.jpg {number % 3}" for number in range(12)]
    drawings = [f"sketches/{number}.jpg {number % 3}" for number in range(4)]
    write(lists / "ImageResized_ready_filelist_zero.txt", "\n".join(photos) + "\n")
    write(lists / "png_ready_filelist_zero.txt", "\n".join(drawings) + "\n")
    for number in range(12):
        put(tmp_path / f"photos/{number}.jpg", images[number])
    for number in range(4):
        put(tmp_path / f"sketches/{number}.jpg", images[number])
    return tmp_path


def test_sketches_find_photos_of_their_class(bundle, sketches, tmp_path) -> None:
    found, _ = run(bundle, DatasetName.TUBERLIN, sketches, "zeroshot", tmp_path / "work")
    assert [found.score(f"P@{k}") for k in (50, 100, 200)] == pytest.approx([4 / 50, 4 / 100, 4 / 200])
    assert 4 / 12 < found.score("mAP@all") <= 1
    assert found.score("mAP@all") != found.score("mAP@all as published")


FASHIONIQ, CIRR, CIRCO = DatasetName.FASHIONIQ, DatasetName.CIRR, DatasetName.CIRCO


@pytest.mark.parametrize(
    ("recipe", "name", "texts"),
    [
        ("transagg", FASHIONIQ, ["Is red and has long sleeves"]),
        ("transagg-union", FASHIONIQ, [" is red. and has long sleeves, "]),
        ("sprc", FASHIONIQ, ["Is red and has long sleeves"]),
        ("searle", FASHIONIQ, ["is red and has long sleeves", "has long sleeves and is red"]),
        ("lincir", FASHIONIQ, ["is red and has long sleeves", "has long sleeves and is red"]),
        ("pic2word", FASHIONIQ, ["has long sleeves,  and  is red."]),
        ("transagg", CIRR, ["Make it Blue."]),
        ("transagg-union", CIRR, ["find a photo that make it blue."]),
        ("sprc", CIRR, ["Make it Blue."]),
        ("searle", CIRR, ["Make it Blue."]),
        ("pic2word", CIRR, ["Make it Blue."]),
        ("transagg-union", CIRCO, ["a dress but make it blue."]),
        ("searle", CIRCO, ["Make it Blue."]),
        ("lincir", CIRCO, ["Make it Blue."]),
        ("retrieval-dpo", CIRR, ["Make it Blue."]),
    ],
)
def test_a_recipe_words_a_benchmarks_queries_as_its_authors_code_does(recipe, name, texts) -> None:
    captions = (" is red.", "has long sleeves, ") if name is FASHIONIQ else ("Make it Blue.",)
    concept = "a Dress" if name is CIRCO else None
    query = Query("0", None, None, captions, (), shared_concept=concept)
    assert query_texts(query, recipe_named(recipe).caption_join, name) == texts


@pytest.mark.slow
def test_circos_answers_leave_the_reference_out_where_the_authors_code_does(bundle, circo, tmp_path) -> None:
    union = with_spec(bundle, circo_without_reference=True)
    references = {
        str(entry["id"]): entry["reference_img_id"]
        for entry in json.loads((circo / "annotations/test.json").read_text())
    }
    answers = {}
    for name, one in (("plain", bundle), ("union", union)):
        _, (written,) = run(one, DatasetName.CIRCO, circo, "test", tmp_path / name)
        answers[name] = json.loads(written.read_text())
    assert any(references[query] in ids for query, ids in answers["plain"].items())
    for query, ids in answers["union"].items():
        assert ids[:49] == [identity for identity in answers["plain"][query] if identity != references[query]][:49]
        assert len(set(ids)) == 50
        assert references[query] not in ids
    plain, _ = run(bundle, DatasetName.CIRCO, circo, "val", tmp_path / "plain-val")
    without, _ = run(union, DatasetName.CIRCO, circo, "val", tmp_path / "union-val")
    assert without.score("mAP@50") > plain.score("mAP@50"), "the reference comes first, and is no answer"


def test_a_gallery_of_fifty_is_too_small_for_circo_without_the_reference(bundle, circo, tmp_path) -> None:
    path = circo / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    images = json.loads(path.read_text())["images"][:50]
    write(path, {"images": images})
    known = {image["id"] for image in images}
    entries = json.loads((circo / "annotations/test.json").read_text())
    first = next(iter(known))
    write(
        circo / "annotations/test.json",
        [entry | ({} if entry["reference_img_id"] in known else {"reference_img_id": first}) for entry in entries],
    )
    with pytest.raises(SubmissionError, match="a gallery of at least 51 images, found 50"):
        run(with_spec(bundle, circo_without_reference=True), DatasetName.CIRCO, circo, "test", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_broken_image_of_a_benchmark_is_named(bundle, fashioniq, tmp_path) -> None:
    (fashioniq / "images" / "B002.jpg").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"1 images of the gallery are broken, the first images/B002\.jpg"):
        run(bundle, DatasetName.FASHIONIQ, fashioniq, "val", tmp_path / "work")


def with_spec(bundle: Bundle, **changes: object) -> Bundle:
    return Bundle(bundle.root, bundle.spec.model_copy(update=changes))


def test_each_caption_is_a_query_where_the_recipe_says_so(bundle, fashioniq, tmp_path) -> None:
    each = with_spec(bundle, caption_join=CaptionJoin.EACH)
    found, _ = run(each, DatasetName.FASHIONIQ, fashioniq, "val", tmp_path / "work")
    assert found.score("Recall@50") == 1.0
    hits = found.score("Recall@10") * 8
    assert hits == pytest.approx(round(hits)), "four queries of two captions are eight queries"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "split"), [(DatasetName.CIRR, "test1"), (DatasetName.CIRCO, "test")])
def test_a_query_of_one_caption_is_submitted_under_its_own_id_by_every_recipe(
    request, bundle, name, split, tmp_path
) -> None:
    root = request.getfixturevalue(name.value)
    each = with_spec(bundle, caption_join=CaptionJoin.EACH)
    both = with_spec(bundle, caption_join=CaptionJoin.BOTH_ORDERS)
    _, expected = run(both, name, root, split, tmp_path / "both")
    _, written = run(each, name, root, split, tmp_path / "each")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in expected]


def test_a_test_split_without_a_test_server_is_refused_before_any_image_is_embedded(
    bundle, fashioniq, tmp_path
) -> None:
    for path in (fashioniq / "captions").iterdir():
        entries = [
            {key: value for key, value in entry.items() if key != "target"} for entry in json.loads(path.read_text())
        ]
        write(path.with_name(path.name.replace("val", "test")), entries)
    for path in (fashioniq / "image_splits").iterdir():
        write(path.with_name(path.name.replace("val", "test")), path.read_text())
    with pytest.raises(DatasetError, match="fashioniq has no test server that takes predictions; use --split val"):
        run(bundle, DatasetName.FASHIONIQ, fashioniq, "test", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_split_with_targets_for_some_queries_is_refused(bundle, fashioniq, tmp_path) -> None:
    path = fashioniq / "captions/cap.shirt.val.json"
    entries = json.loads(path.read_text())
    del entries[2]["target"]
    write(path, entries)
    with pytest.raises(DatasetError, match="shirt: 1 of 4 queries have no target"):
        run(bundle, DatasetName.FASHIONIQ, fashioniq, "val", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_test_split_that_no_valid_submission_can_be_made_of_is_refused(bundle, circo, cirr, tmp_path) -> None:
    entries = json.loads((circo / "annotations/test.json").read_text())
    write(circo / "annotations/test.json", entries[:-1])
    with pytest.raises(SubmissionError, match="found 799 ids, without 799"):
        run(bundle, DatasetName.CIRCO, circo, "test", tmp_path / "work")
    names = json.loads((cirr / "cirr/image_splits/split.rc2.test1.json").read_text())
    write(cirr / "cirr/image_splits/split.rc2.test1.json", dict(list(names.items())[:50]))
    with pytest.raises(SubmissionError, match="a gallery of at least 51 images, found 50"):
        run(bundle, DatasetName.CIRR, cirr, "test1", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_sketches_are_refused_where_the_recipe_answers_texts_alone(tiny_zero_shot_bundle, sketches, tmp_path) -> None:
    ensembles = dict(tiny_zero_shot_bundle.spec.ensembles)
    del ensembles[EnsembleName.ENCODE_QUERY]
    bundle = with_spec(tiny_zero_shot_bundle, ensembles=ensembles, caption_join=CaptionJoin.EACH)
    with pytest.raises(UnsupportedQuery, match=r"images without a text, and bundle tiny-clip .* answers texts alone"):
        run(bundle, DatasetName.TUBERLIN, sketches, "zeroshot", tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_a_bundle_with_a_reranker_has_a_second_row_with_its_best_in_another_order(
    bundle, fashioniq, tmp_path, tmp_path_factory
) -> None:
    made = write_tiny_reranking_bundle(tmp_path_factory.mktemp("bundles") / "reranking")
    tasks = read_dataset(DatasetName.FASHIONIQ, fashioniq, "val")
    options = {"root": fashioniq, "split": "val", "work": tmp_path / "work"}
    report, _ = evaluate_all([bundle, made], DatasetName.FASHIONIQ, tasks, **options, rerank=6)
    rows = [(row.bundle, row.rerank) for row in report.evaluations]
    assert rows == [("tiny", None), ("reranking", None), ("reranking", 6)]
    assert "| reranking, best 6 re-ranked |" in report.markdown()
    reranker, dress = LocalEncoder(made), tasks[0]
    texts = ["Is red and has long sleeves"] * len(dress.queries)
    targets = reranker.encode_targets([image.path for image in dress.gallery])
    queries = reranker.encode_queries([query.image for query in dress.queries], texts)
    hits = []
    for query, embedding in zip(dress.queries, queries, strict=True):
        order = np.argsort(-(targets @ embedding), kind="stable")
        scores = reranker.scores(query.image, texts[0], [dress.gallery[row].path for row in order[:6]])
        order[:6] = order[:6][np.argsort(-scores, kind="stable")]
        hits.append(query.targets[0] in order[:10])
    assert report.evaluations[2].scores[0].value == np.mean(hits)
    with pytest.raises(UnsupportedQuery, match=r"none of the bundles \(tiny\) has a reranker"):
        evaluate_all([bundle], DatasetName.FASHIONIQ, tasks, **options, rerank=6)


@pytest.mark.slow
def test_galleries_of_two_precisions_are_embedded_each_though_name_and_space_are_equal(
    bundle, fashioniq, tmp_path
) -> None:
    tasks = read_dataset(DatasetName.FASHIONIQ, fashioniq, "val")
    (graph, *_) = (step.model for step in bundle.spec.ensembles[EnsembleName.ENCODE_TARGET].steps[1:])
    other = damaged(bundle, tmp_path / "other", graph)
    options = {"root": fashioniq, "split": "val", "work": tmp_path / "work"}
    report, _ = evaluate_all([bundle, bundle, other], DatasetName.FASHIONIQ, tasks, **options)
    assert report is not None
    assert [row.image_ms is None for row in report.evaluations] == [False, True, False]


def test_the_reference_stays_out_of_what_is_re_ranked(cirr, tmp_path, tmp_path_factory) -> None:
    made = write_tiny_reranking_bundle(tmp_path_factory.mktemp("bundles") / "reranking")
    tasks = read_dataset(DatasetName.CIRR, cirr, "val")
    report, _ = evaluate_all([made], DatasetName.CIRR, tasks, root=cirr, split="val", work=tmp_path / "w", rerank=50)
    plain, reranked = report.evaluations
    assert plain.score("Recall@50") == reranked.score("Recall@50")
    assert [plain.score(f"Recall@{k}") for k in (1, 5, 10)] != [reranked.score(f"Recall@{k}") for k in (1, 5, 10)]
