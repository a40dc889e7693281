"""The rendered catalogue on disk, in FashionIQ's layout, and its sketches.

    captions/cap.<kind>.<split>.json       [{"target": id, "candidate": id, "captions": [text, text]}, ...]
    image_splits/split.<kind>.<split>.json [id, ...]: the gallery
    images/<id>.jpg
    sketches/<id>.jpg                      a sketch of the garment in images/<id>.jpg
    sketches/split.<split>.json            [id, ...]: the gallery, and the queries, of sketch -> photo

Unlike FashionIQ's, the test split has its targets. Descriptions of one split never occur in another (`split_of`).

A gallery's descriptions are all different, so that an edit has one right answer where it names the new attributes
("short sleeves"); a relative one ("shorter sleeves" from long ones) may fit a few. Recall@K counts the labelled
target, as FashionIQ does, and the reference stays in the gallery. Galleries are made of families of look-alikes:
around each reference lie some forty garments that share most attributes with it, so that neither the image nor the
text alone finds the target. Sketches have no colour: their gallery has one photo for each combination of the other
attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from cirrus_client.files import atomic_path, write_atomically
from cirrus_demo.attributes import Garment, Kind, Split, random_garment
from cirrus_demo.drawing import render
from cirrus_demo.edits import edit_captions
from cirrus_demo.families import edit_pairs, family
from cirrus_demo.sketch import sketch
from cirrus_export.gate.probe import fashioniq_text

T = TypeVar("T")

FAMILY_SIZE = 40
IMAGE_SIZE_PX = 256
JPEG_QUALITY = 92
PUBLISHED_SEED = 2024


@dataclass(frozen=True)
class CatalogueSize:
    """How much of each kind. The default is what the published figures are measured on."""

    families: int = 12
    queries: int = 400


PUBLISHED_SIZE = CatalogueSize()
"""With PUBLISHED_SEED, the catalogue on which the published figures are measured."""


@dataclass(frozen=True)
class Query:
    """A reference image, the two captions of an edit, and the image that is wanted."""

    reference: str
    target: str
    captions: tuple[str, str]

    @property
    def text(self) -> str:
        """The query text: both captions joined as the released code does."""
        return fashioniq_text(self.captions)


@dataclass(frozen=True)
class Catalogue:
    """What a catalogue shows, by kind: the gallery (image id to garment) and the queries."""

    split: Split
    gallery: dict[Kind, dict[str, Garment]]
    queries: dict[Kind, tuple[Query, ...]]

    def sketched(self) -> tuple[str, ...]:
        """Return the ids of the sketch set: the first photo of each kind, pattern, sleeve, neckline and length."""
        shapes = {
            (g.kind, g.pattern, g.sleeve, g.neckline, g.length): image_id
            for gallery in reversed(self.gallery.values())
            for image_id, g in reversed(gallery.items())
        }
        return tuple(sorted(shapes.values()))


def plan_catalogue(split: Split, *, seed: int, size: CatalogueSize = PUBLISHED_SIZE) -> Catalogue:
    """Return the catalogue that a seed stands for, without drawing anything."""
    rng = np.random.default_rng((seed, list(Split).index(split)))
    gallery: dict[Kind, dict[str, Garment]] = {}
    queries: dict[Kind, tuple[Query, ...]] = {}
    for kind in Kind:
        families = _distinct_families(split, kind, size.families, rng)
        gallery[kind] = {
            _image_id(kind, split, number): garment
            for number, garment in enumerate(garment for members in families for garment in members)
        }
        pairs = [
            (place * FAMILY_SIZE + reference, place * FAMILY_SIZE + target)
            for place, members in enumerate(families)
            for reference, target in edit_pairs(members)
        ]
        garments = tuple(gallery[kind].values())
        chosen = rng.choice(len(pairs), size=min(size.queries, len(pairs)), replace=False)
        queries[kind] = tuple(
            Query(
                _image_id(kind, split, reference),
                _image_id(kind, split, target),
                edit_captions(garments[reference], garments[target], rng),
            )
            for reference, target in (pairs[place] for place in chosen)
        )
    return Catalogue(split, gallery, queries)


def write_catalogue(
    root: Path, *, split: Split, seed: int, size: CatalogueSize = PUBLISHED_SIZE, show_progress: bool = True
) -> Catalogue:
    """Write one split of the catalogue below root and return it. The same arguments write the same bytes."""
    catalogue = plan_catalogue(split, seed=seed, size=size)
    for kind in Kind:
        entries = [
            {"target": query.target, "candidate": query.reference, "captions": list(query.captions)}
            for query in catalogue.queries[kind]
        ]
        _write_json(captions_path(root, kind, split), entries)
        _write_json(gallery_path(root, kind, split), list(catalogue.gallery[kind]))
    sketched = catalogue.sketched()
    _write_json(root / "sketches" / f"split.{split}.json", list(sketched))

    garments = {image_id: garment for gallery in catalogue.gallery.values() for image_id, garment in gallery.items()}
    for number, (image_id, garment) in enumerate(_progress(garments.items(), "photos", show_progress)):
        _write_jpeg(image_path(root, image_id), render(garment, _image_seed(seed, number), IMAGE_SIZE_PX))
    for number, image_id in enumerate(_progress(sketched, "sketches", show_progress)):
        _write_jpeg(sketch_path(root, image_id), sketch(garments[image_id], _image_seed(seed, number), IMAGE_SIZE_PX))
    return catalogue


def write_photos(folder: Path, *, count: int, size_px: int, seed: int, show_progress: bool = True) -> list[Path]:
    """Write `count` photos of random garments, longer side size_px, as <number>.jpg and return their paths."""
    garments = photographed(count, seed)
    paths = [folder / name for name in garments]
    for number, garment in enumerate(_progress(list(garments.values()), "photos", show_progress)):
        _write_jpeg(paths[number], render(garment, _image_seed(seed, number), size_px))
    return paths


def photographed(count: int, seed: int) -> dict[str, Garment]:
    """Return which garment is on each of the photos of `write_photos`, by the photo's name."""
    rng = np.random.default_rng((seed, len(Split)))
    return {f"{number:06d}.jpg": random_garment(rng, Split.TEST) for number in range(count)}


def read_queries(root: Path, kind: Kind, split: Split) -> tuple[Query, ...]:
    """Return the queries of a captions file."""
    entries = json.loads(captions_path(root, kind, split).read_text())
    return tuple(
        Query(entry["candidate"], entry["target"], (entry["captions"][0], entry["captions"][1])) for entry in entries
    )


def read_gallery(root: Path, kind: Kind, split: Split) -> tuple[str, ...]:
    """Return the image ids of a gallery."""
    return tuple(json.loads(gallery_path(root, kind, split).read_text()))


def read_sketched(root: Path, split: Split) -> tuple[str, ...]:
    """Return the image ids of the sketch set: each is a sketch that is searched, and a photo to be found."""
    return tuple(json.loads((root / "sketches" / f"split.{split}.json").read_text()))


def captions_path(root: Path, kind: Kind, split: Split) -> Path:
    """Return where a kind's queries are."""
    return root / "captions" / f"cap.{kind}.{split}.json"


def gallery_path(root: Path, kind: Kind, split: Split) -> Path:
    """Return where a kind's gallery is listed."""
    return root / "image_splits" / f"split.{kind}.{split}.json"


def image_path(root: Path, image_id: str) -> Path:
    """Return where a photo is."""
    return root / "images" / f"{image_id}.jpg"


def sketch_path(root: Path, image_id: str) -> Path:
    """Return where the sketch of a photo's garment is."""
    return root / "sketches" / f"{image_id}.jpg"


def _distinct_families(split: Split, kind: Kind, count: int, rng: np.random.Generator) -> list[tuple[Garment, ...]]:
    """Return families that share no description, so that a gallery has each description once."""
    families: list[tuple[Garment, ...]] = []
    seen: set[Garment] = set()
    for _ in range(count):
        families.append(family(split, kind, FAMILY_SIZE, rng, taken=seen))
        seen.update(families[-1])
    return families


def _image_id(kind: Kind, split: Split, number: int) -> str:
    return f"{kind}-{split}-{number:05d}"


def _image_seed(seed: int, number: int) -> int:
    return seed * 1_000_000 + number


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def _write_jpeg(path: Path, picture: Image.Image) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, "JPEG", quality=JPEG_QUALITY)


def _progress(items: Iterable[T], description: str, show: bool) -> Iterable[T]:
    wrapped: Iterable[T] = tqdm(items, desc=description, disable=not show)
    return wrapped
