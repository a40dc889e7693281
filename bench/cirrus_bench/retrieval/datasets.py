"""Readers of the official files: FashionIQ, CIRR, CIRCO, and the file lists of sketch-based retrieval.

fashioniq   captions/cap.{dress,shirt,toptee}.<split>.json, image_splits/split.*.<split>.json, images/<id>.png|jpg
cirr        cirr/captions/cap.rc2.<split>.json, cirr/image_splits/split.rc2.<split>.json, images below the root
circo       annotations/<split>.json, COCO2017_unlabeled/{annotations/image_info_unlabeled2017.json,unlabeled2017}
sketchy, tuberlin, quickdraw   two lists of "path class_id" lines, paths below the root; split is "zeroshot1" ...
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cirrus_client.errors import CirrusError


class DatasetError(CirrusError):
    """A benchmark's folder that lacks a file, or a file that is not of the official form."""


class DatasetName(StrEnum):
    """The benchmarks that can be read."""

    FASHIONIQ = "fashioniq"
    CIRR = "cirr"
    CIRCO = "circo"
    SKETCHY = "sketchy"
    TUBERLIN = "tuberlin"
    QUICKDRAW = "quickdraw"


@dataclass(frozen=True)
class Query:
    """One query. Rows count the gallery of its task.

    id: as the benchmark names it. captions: as the file has them, two for FashionIQ. concept: CIRCO's shared concept.
    targets: correct rows, none on a test split; the first is the one that was annotated as target. reference: row of
    the reference image, None where it is not in the gallery. subset: CIRR's five other members of the image set.
    """

    id: str
    image: Path
    captions: tuple[str, ...]
    targets: tuple[int, ...]
    reference: int | None = None
    subset: tuple[int, ...] = ()
    concept: str | None = None


@dataclass(frozen=True)
class Task:
    """Queries over one gallery. names: the benchmark's own, of each gallery row."""

    name: str
    names: tuple[str, ...]
    images: tuple[Path, ...]
    queries: tuple[Query, ...]


_SBIR_LISTS = {
    DatasetName.SKETCHY: ("sketch_tx_000000000000_ready_filelist_zero.txt", "all_photo_filelist_zero.txt"),
    DatasetName.TUBERLIN: ("png_ready_filelist_zero.txt", "ImageResized_ready_filelist_zero.txt"),
    DatasetName.QUICKDRAW: ("sketch_zero.txt", "all_photo_zero.txt"),
}
_FASHIONIQ_KINDS = ("dress", "shirt", "toptee")


def read_dataset(name: DatasetName, root: Path, split: str) -> list[Task]:
    """Return the tasks of a benchmark: three for FashionIQ, one else. Raises DatasetError; no image is opened."""
    if not root.is_dir():
        raise DatasetError(f"{name}: --root {root} is no folder")
    if name is DatasetName.FASHIONIQ:
        return [_fashioniq(root, kind, split) for kind in _FASHIONIQ_KINDS]
    if name is DatasetName.CIRR:
        return [_cirr(root, split)]
    if name is DatasetName.CIRCO:
        return [_circo(root, split)]
    return [_sbir(name, root, split)]


def _fashioniq(root: Path, kind: str, split: str) -> Task:
    captions = _list(root / "captions" / f"cap.{kind}.{split}.json")
    names = tuple(str(name) for name in _list(root / "image_splits" / f"split.{kind}.{split}.json"))
    images = tuple(_image(root / "images", name) for name in names)
    rows = _rows(names)
    where = root / "captions" / f"cap.{kind}.{split}.json"
    return Task(
        kind,
        names,
        images,
        tuple(
            Query(
                id=f"{kind}-{number}",
                image=images[_row(rows, _field(entry, "candidate", where), where)],
                captions=tuple(_field(entry, "captions", where)),
                targets=(_row(rows, entry["target"], where),) if "target" in entry else (),
                reference=_row(rows, entry["candidate"], where),
            )
            for number, entry in enumerate(captions)
        ),
    )


def _cirr(root: Path, split: str) -> Task:
    base = root / "cirr" if (root / "cirr").is_dir() else root
    where = base / "captions" / f"cap.rc2.{split}.json"
    entries = _list(where)
    files = _object(base / "image_splits" / f"split.rc2.{split}.json")
    names = tuple(files)
    images = tuple(_existing(root / path) for path in files.values())
    rows = _rows(names)
    queries = []
    for entry in entries:
        reference = _row(rows, _field(entry, "reference", where), where)
        members = _field(_field(entry, "img_set", where), "members", where)
        queries.append(
            Query(
                id=str(_field(entry, "pairid", where)),
                image=images[reference],
                captions=(_field(entry, "caption", where),),
                targets=(_row(rows, entry["target_hard"], where),) if "target_hard" in entry else (),
                reference=reference,
                subset=tuple(_row(rows, name, where) for name in members if name != entry["reference"]),
            )
        )
    return Task("cirr", names, images, tuple(queries))


def _circo(root: Path, split: str) -> Task:
    where = root / "annotations" / f"{split}.json"
    entries = _list(where)
    coco = root / "COCO2017_unlabeled"
    listing = coco / "annotations" / "image_info_unlabeled2017.json"
    records = _field(_object(listing), "images", listing)
    names = tuple(str(_field(record, "id", listing)) for record in records)
    images = tuple(_existing(coco / "unlabeled2017" / f"{int(name):012d}.jpg") for name in names)
    rows = _rows(names)
    queries = []
    for entry in entries:
        reference = _row(rows, str(_field(entry, "reference_img_id", where)), where)
        found = [entry["target_img_id"]] if "target_img_id" in entry else []
        found += [truth for truth in entry.get("gt_img_ids", []) if truth not in found]
        queries.append(
            Query(
                id=str(_field(entry, "id", where)),
                image=images[reference],
                captions=(_field(entry, "relative_caption", where),),
                targets=tuple(_row(rows, str(truth), where) for truth in found),
                reference=reference,
                concept=_field(entry, "shared_concept", where),
            )
        )
    return Task("circo", names, images, tuple(queries))


def _sbir(name: DatasetName, root: Path, split: str) -> Task:
    sketches, photos = (_file_list(root / split / file, root) for file in _SBIR_LISTS[name])
    by_class: dict[str, list[int]] = {}
    for row, (_, label) in enumerate(photos):
        by_class.setdefault(label, []).append(row)
    return Task(
        str(name),
        tuple(str(path.relative_to(root)) for path, _ in photos),
        tuple(path for path, _ in photos),
        tuple(
            Query(
                id=str(path.relative_to(root)),
                image=path,
                captions=("",),
                targets=tuple(by_class.get(label, ())),
            )
            for path, label in sketches
        ),
    )


def _file_list(path: Path, root: Path) -> list[tuple[Path, str]]:
    entries = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            file, _, label = line.strip().rpartition(" ")
            if not file:
                raise DatasetError(f"{path}, line {number}: expected 'path class_id', found '{line}'")
            entries.append((_existing(root / file), label))
    return entries


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        siblings = sorted(file.name for file in path.parent.glob("*")) if path.parent.is_dir() else []
        there = f"there are {', '.join(siblings[:8])}" if siblings else f"and there is no {path.parent}"
        raise DatasetError(f"{path} is missing; {there}: check --root and --split") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not JSON: {error}; download it again") from None


def _list(path: Path) -> list[Any]:
    content = _json(path)
    if not isinstance(content, list):
        raise DatasetError(f"{path}: expected a JSON list, found {type(content).__name__}")
    return content


def _object(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _field(entry: Any, field: str, where: Path) -> Any:
    if not isinstance(entry, dict) or field not in entry:
        raise DatasetError(f"{where}: an entry lacks '{field}': {json.dumps(entry)[:120]}")
    return entry[field]


def _rows(names: tuple[str, ...]) -> dict[str, int]:
    return {name: row for row, name in enumerate(names)}


def _row(rows: dict[str, int], name: str, where: Path) -> int:
    if name not in rows:
        raise DatasetError(f"{where}: image '{name}' is not in the split's gallery of {len(rows):,} images")
    return rows[name]


def _image(folder: Path, name: str) -> Path:
    for suffix in (".png", ".jpg"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise DatasetError(f"image '{name}' is not in {folder} as .png or .jpg")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DatasetError(f"image {path} is missing; download the dataset's images below --root")
    return path
