"""Readers of the benchmarks' files, on tiny datasets in the official layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirrus_bench.retrieval.datasets import DatasetError, DatasetName, Query, read_dataset


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def fashioniq(tmp_path: Path) -> Path:
    for category in ("dress", "shirt", "toptee"):
        ids = [f"{category}{number}" for number in range(3)]
        write(tmp_path / f"image_splits/split.{category}.val.json", ids)
        write(tmp_path / f"image_splits/split.{category}.test.json", ids)
        pair = {"candidate": ids[2], "captions": ["is solid white", " Has a logo."]}
        write(tmp_path / f"captions/cap.{category}.val.json", [{**pair, "target": ids[0]}])
        write(tmp_path / f"captions/cap.{category}.test.json", [pair])
        for identity, suffix in zip(ids, ("png", "jpg", "png"), strict=True):
            touch(tmp_path / f"images/{identity}.{suffix}")
    return tmp_path


@pytest.fixture
def cirr(tmp_path: Path) -> Path:
    names = [f"dev-{number}-0-img1" for number in range(7)]
    query = {
        "pairid": 12,
        "reference": names[3],
        "caption": "make it two dogs",
        "img_set": {"id": 5, "members": names[1:], "reference_rank": 3, "target_rank": 4},
    }
    target = {"target_hard": names[5], "target_soft": {names[5]: 1.0, names[6]: 0.5}}
    write(tmp_path / "cirr/captions/cap.rc2.val.json", [{**query, **target}])
    write(tmp_path / "cirr/captions/cap.rc2.test1.json", [query])
    for split in ("val", "test1"):
        write(tmp_path / f"cirr/image_splits/split.rc2.{split}.json", {name: f"./dev/{name}.png" for name in names})
    for name in names:
        touch(tmp_path / f"dev/{name}.png")
    return tmp_path


@pytest.fixture
def circo(tmp_path: Path) -> Path:
    coco = tmp_path / "COCO2017_unlabeled"
    images = [{"id": identity, "file_name": f"{identity:012d}.jpg"} for identity in (581, 1008, 53, 700)]
    write(coco / "annotations/image_info_unlabeled2017.json", {"info": {}, "images": images})
    for image in images:
        touch(coco / f"unlabeled2017/{image['file_name']}")
    query = {"reference_img_id": 53, "relative_caption": "is at night", "shared_concept": "a bus", "id": 0}
    truth = {"target_img_id": 700, "gt_img_ids": [581, 700], "semantic_aspects": ["addition"]}
    write(tmp_path / "annotations/val.json", [{**query, **truth}])
    write(tmp_path / "annotations/test.json", [query])
    return tmp_path


@pytest.fixture
def tuberlin(tmp_path: Path) -> Path:
    sketches = ["png_ready/wine glass/1.png 4", "png_ready/bee/2.png 0"]
    photos = [
        "ImageResized_ready/bee/a.jpg 0",
        "ImageResized_ready/wine glass/b.jpg 4",
        "ImageResized_ready/bee/c.jpg 0",
    ]
    write(tmp_path / "zeroshot/png_ready_filelist_zero.txt", "\n".join(sketches) + "\n\n")
    write(tmp_path / "zeroshot/ImageResized_ready_filelist_zero.txt", "\n".join(photos))
    for line in (*sketches, *photos):
        touch(tmp_path / line.rpartition(" ")[0])
    return tmp_path


def test_fashioniq_is_a_task_a_category_with_the_captions_as_written(fashioniq: Path) -> None:
    tasks = read_dataset(DatasetName.FASHIONIQ, fashioniq, "val")
    assert [task.name for task in tasks] == ["dress", "shirt", "toptee"]
    shirt = tasks[1]
    assert [image.id for image in shirt.gallery] == ["shirt0", "shirt1", "shirt2"]
    assert [image.path.name for image in shirt.gallery] == ["shirt0.png", "shirt1.jpg", "shirt2.png"]
    assert shirt.queries == (
        Query(
            id="shirt-0",
            image=fashioniq / "images/shirt2.png",
            reference=2,
            captions=("is solid white", " Has a logo."),
            targets=(0,),
        ),
    )


def test_cirr_has_a_subset_without_the_reference(cirr: Path) -> None:
    (task,) = read_dataset(DatasetName.CIRR, cirr, "val")
    assert len(task.gallery) == 7
    assert task.queries == (
        Query(
            id="12",
            image=cirr / "dev/dev-3-0-img1.png",
            reference=3,
            captions=("make it two dogs",),
            targets=(5,),
            subset=(1, 2, 4, 5, 6),
        ),
    )


def test_cirr_is_read_from_a_checkout_of_its_annotations(cirr: Path) -> None:
    for folder in ("captions", "image_splits"):
        (cirr / "cirr" / folder).rename(cirr / folder)
    (cirr / "cirr").rmdir()
    (task,) = read_dataset(DatasetName.CIRR, cirr, "val")
    assert task.queries[0].targets == (5,)


def test_circo_has_the_annotated_target_first_among_its_truths(circo: Path) -> None:
    (task,) = read_dataset(DatasetName.CIRCO, circo, "val")
    assert [image.id for image in task.gallery] == ["581", "1008", "53", "700"]
    assert task.queries == (
        Query(
            id="0",
            image=circo / "COCO2017_unlabeled/unlabeled2017/000000000053.jpg",
            reference=2,
            captions=("is at night",),
            targets=(3, 0),
            shared_concept="a bus",
        ),
    )


def test_sketches_have_every_photo_of_their_class_and_paths_may_hold_spaces(tuberlin: Path) -> None:
    (task,) = read_dataset(DatasetName.TUBERLIN, tuberlin, "zeroshot")
    assert [image.id for image in task.gallery][1] == "ImageResized_ready/wine glass/b.jpg"
    glass, bee = task.queries
    assert glass == Query(
        id="png_ready/wine glass/1.png",
        image=tuberlin / "png_ready/wine glass/1.png",
        reference=None,
        captions=(),
        targets=(1,),
    )
    assert bee.targets == (0, 2)


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        (DatasetName.SKETCHY, ("sketch_tx_000000000000_ready_filelist_zero.txt", "all_photo_filelist_zero.txt")),
        (DatasetName.QUICKDRAW, ("sketch_zero.txt", "all_photo_zero.txt")),
    ],
)
def test_each_sketch_benchmark_has_its_own_lists(tmp_path: Path, name: DatasetName, lists: tuple[str, str]) -> None:
    for file, image in zip(lists, ("sketch.png", "photo.jpg"), strict=True):
        write(tmp_path / "zeroshot1" / file, f"{image} 3\n")
        touch(tmp_path / image)
    (task,) = read_dataset(name, tmp_path, "zeroshot1")
    assert (task.name, task.queries[0].targets) == (name.value, (0,))


@pytest.mark.parametrize(
    ("name", "split"),
    [(DatasetName.FASHIONIQ, "test"), (DatasetName.CIRR, "test1"), (DatasetName.CIRCO, "test")],
)
def test_a_test_split_has_no_targets(request: pytest.FixtureRequest, name: DatasetName, split: str) -> None:
    root = request.getfixturevalue(name.value)
    for task in read_dataset(name, root, split):
        assert [query.targets for query in task.queries] == [()]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        (DatasetName.FASHIONIQ, "there are test, val"),
        (DatasetName.CIRR, "there are test1, val"),
        (DatasetName.CIRCO, "there are test, val"),
        (DatasetName.TUBERLIN, "there are zeroshot"),
    ],
)
def test_an_unknown_split_is_answered_with_those_there_are(
    request: pytest.FixtureRequest, name: DatasetName, there: str
) -> None:
    with pytest.raises(DatasetError, match=f"there is no split 'vall', {there}$"):
        read_dataset(name, request.getfixturevalue(name.value), "vall")


@pytest.mark.parametrize("name", list(DatasetName))
def test_a_folder_without_the_official_files_says_so(tmp_path: Path, name: DatasetName) -> None:
    with pytest.raises(DatasetError, match="name the folder that holds the official files"):
        read_dataset(name, tmp_path, "val")
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        read_dataset(name, tmp_path / "nowhere", "val")


def test_a_missing_second_file_is_named(cirr: Path) -> None:
    (cirr / "cirr/image_splits/split.rc2.val.json").unlink()
    with pytest.raises(DatasetError, match=r"split\.rc2\.val\.json can't be read \(No such file or directory\)"):
        read_dataset(DatasetName.CIRR, cirr, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"pairid": 1', r"cap\.rc2\.val\.json: JSON expected, found Expecting ',' delimiter: line 1 column 14"),
        ("{}", "a JSON list expected, found a dict"),
        ("[]", "a list of queries expected, found an empty list"),
        ('[{"pairid": 1}]', r"an entry with 'reference' \(str\) expected, found {\"pairid\": 1}"),
        ("[7]", r"an entry with 'reference' \(str\) expected, found 7"),
    ],
)
def test_a_broken_captions_file_is_named_with_what_it_holds(cirr: Path, content: str, message: str) -> None:
    write(cirr / "cirr/captions/cap.rc2.val.json", content)
    with pytest.raises(DatasetError, match=message):
        read_dataset(DatasetName.CIRR, cirr, "val")


def test_a_file_that_is_not_utf8_is_named(circo: Path) -> None:
    (circo / "annotations/val.json").write_bytes(b'["\xff"]')
    with pytest.raises(DatasetError, match=r"val\.json: UTF-8 expected, found byte 0xff at 2"):
        read_dataset(DatasetName.CIRCO, circo, "val")


def test_fashioniq_needs_two_captions(fashioniq: Path) -> None:
    entry = {"candidate": "dress0", "target": "dress1", "captions": ["is red"]}
    write(fashioniq / "captions/cap.dress.val.json", [entry])
    with pytest.raises(DatasetError, match=r"entry 0: two captions expected, found \['is red'\]"):
        read_dataset(DatasetName.FASHIONIQ, fashioniq, "val")


@pytest.mark.parametrize("field", ["candidate", "target"])
def test_an_id_that_the_split_lacks_is_named(fashioniq: Path, field: str) -> None:
    entry = {"candidate": "dress0", "target": "dress1", "captions": ["is red", "is long"], field: "B0X"}
    write(fashioniq / "captions/cap.dress.val.json", [entry])
    message = r"cap\.dress\.val\.json: image 'B0X' is not among the 3 images of .*split\.dress\.val\.json"
    with pytest.raises(DatasetError, match=message):
        read_dataset(DatasetName.FASHIONIQ, fashioniq, "val")


def test_missing_images_are_counted_and_the_first_is_named(fashioniq: Path, tuberlin: Path) -> None:
    (fashioniq / "images/shirt1.jpg").unlink()
    (fashioniq / "images/shirt2.png").unlink()
    with pytest.raises(DatasetError, match=r"2 of its 3 images are missing, the first is .*images/shirt1\.png"):
        read_dataset(DatasetName.FASHIONIQ, fashioniq, "val")
    (tuberlin / "png_ready/bee/2.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of its 2 images are missing, the first is .*png_ready/bee/2\.png"):
        read_dataset(DatasetName.TUBERLIN, tuberlin, "zeroshot")


@pytest.mark.parametrize("line", ["png_ready/bee/2.png", "png_ready/bee/2.png bee"])
def test_a_line_without_a_class_id_is_named(tuberlin: Path, line: str) -> None:
    write(tuberlin / "zeroshot/png_ready_filelist_zero.txt", f"png_ready/bee/2.png 0\n{line}\n")
    with pytest.raises(DatasetError, match=f"line 2: 'path class_id' expected, found '{line}'"):
        read_dataset(DatasetName.TUBERLIN, tuberlin, "zeroshot")


def test_a_sketch_of_a_class_without_photos_is_named(tuberlin: Path) -> None:
    write(tuberlin / "zeroshot/png_ready_filelist_zero.txt", "png_ready/bee/2.png 9\n")
    with pytest.raises(DatasetError, match=r"is of class 9, of which \w+\.txt has no photo"):
        read_dataset(DatasetName.TUBERLIN, tuberlin, "zeroshot")
