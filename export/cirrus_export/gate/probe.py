"""The gallery and queries on which an export is held to its original."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cirrus_client.errors import ExportError

_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True)
class ProbeQuery:
    """A composed query: encoded reference image, edit text, and the row of its target in the gallery."""

    image: bytes
    text: str
    target: int


@dataclass(frozen=True)
class Probe:
    """Encoded gallery images and labelled queries over them."""

    name: str
    gallery: tuple[bytes, ...]
    queries: tuple[ProbeQuery, ...]


def read_probe(root: Path, *, queries: int, gallery: int) -> Probe:
    """Read a folder in FashionIQ's layout, validation split, all categories together.

    `captions/cap.*.val.json`, `image_splits/split.*.val.json`, `images/<id>.jpg` (or .png). The gallery is the
    images of the first `queries` queries, filled up to `gallery` from the split. Raises ExportError if the folder is
    not of that layout.
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
