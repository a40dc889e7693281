"""Read the official files of the benchmarks. Images are not opened, but every image must exist.

fashioniq  captions/cap.<category>.<split>.json, image_splits/split.<category>.<split>.json, images/<id>.png or .jpg
cirr       cirr/captions/cap.rc2.<split>.json, cirr/image_splits/split.rc2.<split>.json, images below the root; the
           folder cirr may be left out, as in a checkout of the annotations with the images inside it
circo      annotations/<split>.json, COCO2017_unlabeled/annotations/image_info_unlabeled2017.json, images in
           COCO2017_unlabeled/unlabeled2017/
sketchy, tuberlin, quickdraw
           <split>/ with a list of sketches and a list of photos, one "path class_id" per line, paths relative to the
           root, as in baohl00/UNION_for_IGROT; Sketchy's splits are zeroshot1 (25 classes) and zeroshot0 (21 classes)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cirrus_client.errors import CirrusError


class DatasetError(CirrusError):
    """A benchmark whose files are missing, broken or inconsistent, or a split that can't be evaluated."""


class DatasetName(StrEnum):
    """The supported benchmarks."""

    FASHIONIQ = "fashioniq"
    CIRR = "cirr"
    CIRCO = "circo"
    SKETCHY = "sketchy"
    TUBERLIN = "tuberlin"
    QUICKDRAW = "quickdraw"


@dataclass(frozen=True)
class GalleryImage:
    """One gallery image. id: as the benchmark names it."""

    id: str
    path: Path


@dataclass(frozen=True)
class Query:
    """One query. Rows are positions in the gallery of its task.

    id: as the benchmark names it; FashionIQ has no ids, so it is the category and the position in the captions file.
    image: the reference image or sketch. reference: its row, or None if it is not in the gallery.
    captions: two for FashionIQ, none for sketches, otherwise one. shared_concept: CIRCO only.
    targets: all correct rows, the annotated target first; empty on a test split.
    subset: CIRR only, the rows of the image set's five other members.
    """

    id: str
    image: Path | None
    reference: int | None
    captions: tuple[str, ...]
    targets: tuple[int, ...]
    shared_concept: str | None = None
    subset: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """Queries over one gallery."""

    name: str
    gallery: tuple[GalleryImage, ...]
    queries: tuple[Query, ...]


_FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")
_FASHIONIQ_SUFFIXES = (".png", ".jpg")
_SKETCH_AND_PHOTO_LISTS = {
    DatasetName.SKETCHY: ("sketch_tx_000000000000_ready_filelist_zero.txt", "all_photo_filelist_zero.txt"),
    DatasetName.TUBERLIN: ("png_ready_filelist_zero.txt", "ImageResized_ready_filelist_zero.txt"),
    DatasetName.QUICKDRAW: ("sketch_zero.txt", "all_photo_zero.txt"),
}


def read_dataset(name: DatasetName, root: Path, split: str) -> list[Task]:
    """Read a split of a benchmark; return one task per category for FashionIQ, otherwise a single task.

    root: the benchmark's folder, laid out as described above. Raises DatasetError for an unknown split, a missing file
    or image, a file that is not in the official format, and ids that the gallery does not have.
    """
    if not root.is_dir():
        raise DatasetError(f"{name}: {root} is not a folder; name the folder that holds the official files")
    if name is DatasetName.FASHIONIQ:
        return [_read_fashioniq(root, category, split) for category in _FASHIONIQ_CATEGORIES]
    if name is DatasetName.CIRR:
        return [_read_cirr(root, split)]
    if name is DatasetName.CIRCO:
        return [_read_circo(root, split)]
    return [_read_sketches(name, root, split)]


class _Rows:
    """Maps a gallery's ids to rows, and names the file whose id is unknown."""

    def __init__(self, ids: Sequence[str], *, gallery: Path, file: Path) -> None:
        self._row_of = {identity: row for row, identity in enumerate(ids)}
        self._gallery = gallery
        self._file = file

    def of(self, identity: object) -> int:
        row = self._row_of.get(str(identity))
        if row is None:
            raise DatasetError(
                f"{self._file}: image '{identity}' is not among the {len(self._row_of):,} images of {self._gallery}; "
                "take both files from the same release"
            )
        return row


def _read_fashioniq(root: Path, category: str, split: str) -> Task:
    captions_file = root / "captions" / f"cap.{category}.{split}.json"
    split_file = root / "image_splits" / f"split.{category}.{split}.json"
    entries = _read_entries(captions_file, f"cap.{category}.*.json", split)
    ids = [str(identity) for identity in _read_json(split_file, list)]
    gallery = _gallery(ids, [_with_suffix(root / "images" / identity) for identity in ids], split_file)
    rows = _Rows(ids, gallery=split_file, file=captions_file)
    queries = []
    for place, entry in enumerate(entries):
        reference = rows.of(_field(entry, "candidate", str, captions_file))
        captions = _field(entry, "captions", list, captions_file)
        if len(captions) != 2 or not all(isinstance(caption, str) for caption in captions):
            raise DatasetError(f"{captions_file}, entry {place}: two captions expected, found {captions!r}")
        queries.append(
            Query(
                id=f"{category}-{place}",
                image=gallery[reference].path,
                reference=reference,
                captions=tuple(captions),
                targets=(rows.of(entry["target"]),) if "target" in entry else (),
            )
        )
    return Task(category, gallery, tuple(queries))


def _read_cirr(root: Path, split: str) -> Task:
    annotations = root / "cirr" if (root / "cirr").is_dir() else root
    captions_file = annotations / "captions" / f"cap.rc2.{split}.json"
    split_file = annotations / "image_splits" / f"split.rc2.{split}.json"
    entries = _read_entries(captions_file, "cap.rc2.*.json", split)
    path_of = _read_json(split_file, dict)
    ids = list(path_of)
    paths = [root / _field(path_of, identity, str, split_file) for identity in ids]
    gallery = _gallery(ids, paths, split_file)
    rows = _Rows(ids, gallery=split_file, file=captions_file)
    queries = []
    for entry in entries:
        reference = rows.of(_field(entry, "reference", str, captions_file))
        members = _field(_field(entry, "img_set", dict, captions_file), "members", list, captions_file)
        queries.append(
            Query(
                id=str(_field(entry, "pairid", int, captions_file)),
                image=gallery[reference].path,
                reference=reference,
                captions=(_field(entry, "caption", str, captions_file),),
                targets=(rows.of(entry["target_hard"]),) if "target_hard" in entry else (),
                subset=tuple(row for row in map(rows.of, members) if row != reference),
            )
        )
    return Task(DatasetName.CIRR.value, gallery, tuple(queries))


def _read_circo(root: Path, split: str) -> Task:
    annotations_file = root / "annotations" / f"{split}.json"
    coco = root / "COCO2017_unlabeled"
    images_file = coco / "annotations" / "image_info_unlabeled2017.json"
    entries = _read_entries(annotations_file, "*.json", split)
    images = _field(_read_json(images_file, dict), "images", list, images_file)
    ids = [str(_field(image, "id", int, images_file)) for image in images]
    paths = [coco / "unlabeled2017" / _field(image, "file_name", str, images_file) for image in images]
    gallery = _gallery(ids, paths, images_file)
    rows = _Rows(ids, gallery=images_file, file=annotations_file)
    queries = []
    for entry in entries:
        reference = rows.of(_field(entry, "reference_img_id", int, annotations_file))
        annotated = [entry["target_img_id"]] if "target_img_id" in entry else []
        targets = dict.fromkeys(map(rows.of, [*annotated, *entry.get("gt_img_ids", ())]))
        queries.append(
            Query(
                id=str(_field(entry, "id", int, annotations_file)),
                image=gallery[reference].path,
                reference=reference,
                captions=(_field(entry, "relative_caption", str, annotations_file),),
                targets=tuple(targets),
                shared_concept=_field(entry, "shared_concept", str, annotations_file),
            )
        )
    return Task(DatasetName.CIRCO.value, gallery, tuple(queries))


def _read_sketches(name: DatasetName, root: Path, split: str) -> Task:
    sketch_list, photo_list = _SKETCH_AND_PHOTO_LISTS[name]
    if not (root / split).is_dir():
        raise _no_such_split(root / split, split, [found.parent.name for found in root.glob(f"*/{photo_list}")])
    sketches = _read_file_list(root / split / sketch_list)
    photos = _read_file_list(root / split / photo_list)
    gallery = _gallery([path for path, _ in photos], [root / path for path, _ in photos], root / split / photo_list)
    _check_images([root / path for path, _ in sketches], root / split / sketch_list)
    rows_of_class: dict[int, list[int]] = {}
    for row, (_, class_id) in enumerate(photos):
        rows_of_class.setdefault(class_id, []).append(row)
    targets_of_class = {class_id: tuple(rows) for class_id, rows in rows_of_class.items()}
    queries = []
    for path, class_id in sketches:
        if class_id not in targets_of_class:
            raise DatasetError(
                f"{root / split / sketch_list}: sketch {path} is of class {class_id}, of which {photo_list} has no "
                "photo; take both lists from the same release"
            )
        queries.append(
            Query(id=path, image=root / path, reference=None, captions=(), targets=targets_of_class[class_id])
        )
    return Task(name.value, gallery, tuple(queries))


def _gallery(ids: Sequence[str], paths: Sequence[Path], file: Path) -> tuple[GalleryImage, ...]:
    _check_images(paths, file)
    return tuple(GalleryImage(identity, path) for identity, path in zip(ids, paths, strict=True))


def _check_images(paths: Sequence[Path], file: Path) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{file}: {len(missing):,} of its {len(paths):,} images are missing, the first is {missing[0]}; download "
            "them: a smaller gallery would give figures that can't be compared"
        )


def _with_suffix(stem: Path) -> Path:
    candidates = [stem.with_name(stem.name + suffix) for suffix in _FASHIONIQ_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _read_file_list(file: Path) -> list[tuple[str, int]]:
    listed = []
    for number, line in enumerate(_read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        path, _, class_id = line.strip().rpartition(" ")
        if not path or not class_id.isdecimal():
            raise DatasetError(f"{file}, line {number}: 'path class_id' expected, found {line!r}")
        listed.append((path, int(class_id)))
    return listed


def _read_entries(file: Path, pattern: str, split: str) -> list[Any]:
    if not file.is_file():
        before, after = pattern.split("*")
        there = [found.name.removeprefix(before).removesuffix(after) for found in file.parent.glob(pattern)]
        raise _no_such_split(file, split, there)
    entries = _read_json(file, list)
    if not entries:
        raise DatasetError(f"{file}: a list of queries expected, found an empty list; download it again")
    return entries


def _no_such_split(path: Path, split: str, there: Sequence[str]) -> DatasetError:
    if there:
        return DatasetError(f"{path} is missing: there is no split '{split}', there are {', '.join(sorted(there))}")
    return DatasetError(
        f"{path} is missing, and so is every other split: name the folder that holds the official files"
    )


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise DatasetError(f"{file} can't be read ({error.strerror}); download the official files again") from None
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{file}: UTF-8 expected, found byte {error.object[error.start]:#04x} at {error.start}; download it again"
        ) from None


def _read_json(file: Path, kind: type) -> Any:
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{file}: JSON expected, found {error}; download it again") from None
    if not isinstance(content, kind):
        raise DatasetError(f"{file}: a JSON {kind.__name__} expected, found a {type(content).__name__}")
    return content


def _field(entry: Mapping[str, Any], name: str, kind: type, file: Path) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
        raise DatasetError(
            f"{file}: an entry with '{name}' ({kind.__name__}) expected, found {json.dumps(entry)[:120]}; is it of "
            "another release?"
        )
    return entry[name]
