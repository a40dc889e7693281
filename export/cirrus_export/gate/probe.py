"""The gallery and queries on which an export is compared with its original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from cirrus_client.errors import ExportError
from cirrus_client.invalid_fields import first_problem

QUERIES, GALLERY = 64, 128
"""Size of the default probe."""
FEWEST_IMAGES = 11
"""Of a gallery whose ten best are not all of it: rankings of fewer agree whatever is exported."""
_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
_WAY_OUT = 'captions are like [{"target": ID, "candidate": ID, "captions": [TEXT, TEXT]}], and a split like [ID, ID]'
E = TypeVar("E")


@dataclass(frozen=True)
class ProbeQuery:
    """A composed query: a reference image as JPEG or PNG bytes, an edit text, and its target's row in the gallery."""

    image: bytes
    text: str
    target: int


@dataclass(frozen=True)
class Probe:
    """Gallery images as JPEG or PNG bytes, and labelled queries over them."""

    name: str
    gallery: tuple[bytes, ...]
    queries: tuple[ProbeQuery, ...]


def default_probe(*, queries: int = QUERIES, gallery: int = GALLERY) -> Probe:
    """Return the probe that is part of Cirrus, or less of it: rendered garments (`python -m cirrus_demo probe`)."""
    return read_probe(Path(str(files("cirrus_export") / "probe_images")), queries=queries, gallery=gallery)


def read_probe(root: Path, *, queries: int, gallery: int) -> Probe:
    """Read a probe from a folder in FashionIQ's layout: the validation split, all categories together.

    The folder has `captions/cap.*.val.json`, `image_splits/split.*.val.json` and `images/<id>.jpg` (or .png).
    queries: number of queries, spread over the captions. gallery: number of images, those of the queries first, then
    others of the split. Raises ExportError if the folder has another layout, or a file has other content.
    """
    captions = [entry for path in sorted(root.glob("captions/cap.*.val.json")) for entry in _read(path, _CAPTIONS)]
    split = [name for path in sorted(root.glob("image_splits/split.*.val.json")) for name in _read(path, _IDS)]
    if not captions or not split:
        raise ExportError(
            f"probe {root}: expected FashionIQ's layout with captions/cap.*.val.json and image_splits/split.*.val.json"
        )
    step = max(1, len(captions) // queries)
    chosen = captions[::step][:queries]
    needed = [name for entry in chosen for name in (entry.target, entry.candidate)]
    names = list(dict.fromkeys([*needed, *split]))[: max(gallery, len(set(needed)))]
    rows = {name: row for row, name in enumerate(names)}
    images = tuple(_read_image(root, name) for name in names)
    return Probe(
        name=root.name,
        gallery=images,
        queries=tuple(
            ProbeQuery(
                image=images[rows[entry.candidate]],
                text=fashioniq_text(entry.captions),
                target=rows[entry.target],
            )
            for entry in chosen
        ),
    )


def fashioniq_text(captions: Sequence[str]) -> str:
    """Join FashionIQ's two captions as the released evaluation code does: "C0 and c1"."""
    first, second = (caption.strip(".?, ") for caption in captions)
    return f"{first.capitalize()} and {second}"


class _Entry(BaseModel):
    """One query of a captions file, which may have other keys as well."""

    target: str
    candidate: str
    captions: tuple[str, str]


_CAPTIONS, _IDS = TypeAdapter(list[_Entry]), TypeAdapter(list[str])


def _read(path: Path, kind: TypeAdapter[list[E]]) -> list[E]:
    content = path.read_bytes()
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        raise ExportError(f"probe file {path}: {first_problem(error, content)[1]}; {_WAY_OUT}") from None


def _read_image(root: Path, name: str) -> bytes:
    for suffix in _IMAGE_SUFFIXES:
        path = root / "images" / f"{name}{suffix}"
        if path.is_file():
            return path.read_bytes()
    raise ExportError(f"probe {root}: image '{name}' is not in {root / 'images'} as .jpg or .png")
