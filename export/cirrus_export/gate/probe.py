"""The gallery and queries on which an export is compared with its original."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cirrus_client.errors import ExportError

QUERIES, GALLERY = 64, 128
"""Size of the default probe."""
_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")


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
    others of the split. Raises ExportError if the folder has another layout.
    """
    captions = [entry for path in sorted(root.glob("captions/cap.*.val.json")) for entry in _read_json(path)]
    split = [name for path in sorted(root.glob("image_splits/split.*.val.json")) for name in _read_json(path)]
    if not captions or not split:
        raise ExportError(
            f"probe {root}: expected FashionIQ's layout with captions/cap.*.val.json and image_splits/split.*.val.json"
        )
    step = max(1, len(captions) // queries)
    chosen = captions[::step][:queries]
    needed = [entry[role] for entry in chosen for role in ("target", "candidate")]
    names = list(dict.fromkeys([*needed, *split]))[: max(gallery, len(set(needed)))]
    rows = {name: row for row, name in enumerate(names)}
    images = tuple(_read_image(root, name) for name in names)
    return Probe(
        name=root.name,
        gallery=images,
        queries=tuple(
            ProbeQuery(
                image=images[rows[entry["candidate"]]],
                text=fashioniq_text(entry["captions"]),
                target=rows[entry["target"]],
            )
            for entry in chosen
        ),
    )


def fashioniq_text(captions: Sequence[str]) -> str:
    """Join FashionIQ's two captions as the released evaluation code does: "C0 and c1"."""
    first, second = (caption.strip(".?, ") for caption in captions)
    return f"{first.capitalize()} and {second}"


def _read_json(path: Path) -> list:  # type: ignore[type-arg]
    content = json.loads(path.read_text())
    if not isinstance(content, list):
        raise ExportError(f"probe file {path}: expected a JSON list, found {type(content).__name__}")
    return content


def _read_image(root: Path, name: str) -> bytes:
    for suffix in _IMAGE_SUFFIXES:
        path = root / "images" / f"{name}{suffix}"
        if path.is_file():
            return path.read_bytes()
    raise ExportError(f"probe {root}: image '{name}' is not in {root / 'images'} as .jpg or .png")
