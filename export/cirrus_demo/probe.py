"""Rendered garments as a probe: what an export is compared with its original on."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

from cirrus_client.files import write_atomically
from cirrus_demo.attributes import Garment, Kind, Split
from cirrus_demo.catalogue import JPEG_QUALITY, CatalogueSize, Query, plan_catalogue
from cirrus_demo.drawing import render
from cirrus_export.gate.probe import Probe, ProbeQuery

_SEED = 11
_IMAGE_SIZE_PX = 256
_FILE_QUALITY = 80  # the probe that is committed in cirrus_export stays near 1 MB


@dataclass(frozen=True)
class _Plan:
    """Garments of all kinds in one gallery, by image id, and queries whose references and targets are among them."""

    garments: dict[str, Garment]
    queries: tuple[Query, ...]


def rendered_probe(*, queries: int, gallery: int) -> Probe:
    """Return a probe of held-out garments, rendered in memory."""
    plan = _plan(queries=queries, gallery=gallery)
    rows = {name: row for row, name in enumerate(plan.garments)}
    images = tuple(_jpeg(garment, seed, JPEG_QUALITY) for seed, garment in enumerate(plan.garments.values()))
    return Probe(
        name="rendered garments, test split",
        gallery=images,
        queries=tuple(
            ProbeQuery(image=images[rows[query.reference]], text=query.text, target=rows[query.target])
            for query in plan.queries
        ),
    )


def write_probe(folder: Path, *, queries: int, gallery: int) -> None:
    """Write the same probe in FashionIQ's layout, which `cirrus export --probe` reads."""
    plan = _plan(queries=queries, gallery=gallery)
    entries = [
        {"target": query.target, "candidate": query.reference, "captions": list(query.captions)}
        for query in plan.queries
    ]
    for seed, (name, garment) in enumerate(plan.garments.items()):
        write_atomically(folder / "images" / f"{name}.jpg", _jpeg(garment, seed, _FILE_QUALITY))
    _write_json(folder / "image_splits" / "split.garments.val.json", list(plan.garments))
    _write_json(folder / "captions" / "cap.garments.val.json", entries)


def _plan(*, queries: int, gallery: int) -> _Plan:
    catalogue = plan_catalogue(Split.TEST, seed=_SEED, size=CatalogueSize(queries=-(-queries // len(Kind))))
    chosen = tuple(query for kind in Kind for query in catalogue.queries[kind])[:queries]
    garments: dict[str, Garment] = {}
    for of_kind in catalogue.gallery.values():
        garments |= of_kind
    needed = [name for query in chosen for name in (query.target, query.reference)]
    spread = [name for names in zip(*catalogue.gallery.values(), strict=False) for name in names]
    names = list(dict.fromkeys([*needed, *spread]))[: max(gallery, len(set(needed)))]
    return _Plan({name: garments[name] for name in names}, chosen)


def _jpeg(garment: Garment, seed: int, quality: int) -> bytes:
    content = io.BytesIO()
    render(garment, seed, _IMAGE_SIZE_PX).save(content, "JPEG", quality=quality)
    return content.getvalue()


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
