"""The probe that an export is verified on when the user brings none: held-out garments, rendered."""

from __future__ import annotations

import io

from cirrus_demo.attributes import Garment, Kind, Split
from cirrus_demo.catalogue import JPEG_QUALITY, CatalogueSize, plan_catalogue
from cirrus_demo.drawing import render
from cirrus_export.gate.probe import Probe, ProbeQuery

_SEED = 11
_IMAGE_SIZE_PX = 256


def rendered_probe(*, queries: int, gallery: int) -> Probe:
    """Return garments of all kinds in one gallery, with queries whose references and targets are among them."""
    catalogue = plan_catalogue(Split.TEST, seed=_SEED, size=CatalogueSize(queries=-(-queries // len(Kind))))
    chosen = [query for kind in Kind for query in catalogue.queries[kind]][:queries]
    garments: dict[str, Garment] = {}
    for of_kind in catalogue.gallery.values():
        garments |= of_kind
    needed = [name for query in chosen for name in (query.target, query.reference)]
    spread = [name for names in zip(*catalogue.gallery.values(), strict=False) for name in names]
    names = list(dict.fromkeys([*needed, *spread]))[: max(gallery, len(set(needed)))]
    rows = {name: row for row, name in enumerate(names)}
    images = tuple(_jpeg(garments[name], seed) for seed, name in enumerate(names))
    return Probe(
        name="rendered garments, test split",
        gallery=images,
        queries=tuple(
            ProbeQuery(image=images[rows[query.reference]], text=query.text, target=rows[query.target])
            for query in chosen
        ),
    )


def _jpeg(garment: Garment, seed: int) -> bytes:
    content = io.BytesIO()
    render(garment, seed, _IMAGE_SIZE_PX).save(content, "JPEG", quality=JPEG_QUALITY)
    return content.getvalue()
