"""Compare texts that are cut to the lengths a bundle allows with the same texts at the full length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from cirrus_client.agreement import cosine_min
from cirrus_client.encoders.local import LocalEncoder, Pixels, PreparedQuery
from cirrus_client.names import EnsembleName
from cirrus_client.records import Record
from cirrus_client.tokenizer import TokenizerSpec
from cirrus_export.gate.thresholds import Thresholds
from cirrus_export.recipes.recipe import Recipe

_ITEMS = 4
TokenIds = NDArray[np.int64]
Vectors = NDArray[np.float32]


class CutFidelity(Record):
    """Queries whose texts are cut to one length, compared with the same texts at the full length.

    items: texts that end at `length`, texts that end one token before, and the probe's queries that fit. cosine_min:
    the export of cut texts and the original of uncut ones. cut_cosine_min: the export of both.
    """

    ensemble: EnsembleName
    length: int
    items: int
    cosine_min: float
    cut_cosine_min: float


def measure_cuts(encoder: LocalEncoder, recipe: Recipe, pixels: Pixels, token_ids: TokenIds) -> tuple[CutFidelity, ...]:
    """Return what each length of the bundle that is shorter than the context does to each query ensemble.

    pixels, token_ids: the probe's queries, float32 [Q, 3, size_px, size_px] and int64 [Q, T]; the texts are not cut.
    """
    bundle = encoder.bundle
    uncut = LocalEncoder(bundle, cut_texts=False)
    originals: dict[EnsembleName, Callable[[Pixels, TokenIds], torch.Tensor]] = {
        EnsembleName.ENCODE_QUERY: lambda images, texts: recipe.query(torch.tensor(images), torch.tensor(texts)),
        EnsembleName.ENCODE_TEXT_QUERY: lambda _, texts: recipe.text_query(torch.tensor(texts)),
    }
    found = []
    for length in bundle.spec.tokenizer.cut_lengths:
        texts = texts_at(length, token_ids, bundle.spec.tokenizer)
        images = pixels[np.arange(len(texts)) % len(pixels)]
        for name in originals.keys() & bundle.spec.ensembles.keys():
            with_image = name is EnsembleName.ENCODE_QUERY
            queries = [
                PreparedQuery(image if with_image else None, text) for image, text in zip(images, texts, strict=True)
            ]
            with torch.no_grad():
                original = originals[name](images, texts).numpy()
            cut = encoder.encode_prepared_queries(queries)
            found.append(
                CutFidelity(
                    ensemble=name,
                    length=length,
                    items=len(texts),
                    cosine_min=cosine_min(original, cut),
                    cut_cosine_min=cosine_min(uncut.encode_prepared_queries(queries), cut),
                )
            )
    return tuple(found)


def texts_at(length: int, token_ids: TokenIds, spec: TokenizerSpec) -> TokenIds:
    """Return texts for the full context that fit in a length: int64 [N, T].

    They are the probe's texts, repeated or broken off so that they end at the length and one token before it, and a few
    of the probe's texts as they are.
    """
    used = (token_ids != spec.pad_id).cumsum(axis=1).argmax(axis=1) + 1
    rows = [row for row, count in zip(token_ids, used, strict=True) if count <= length][:_ITEMS]
    for row, count in zip(token_ids[:_ITEMS], used, strict=False):
        words = row[1 : count - 1] if count > 2 else row[:1]
        for end in (length - 1, length):
            text = np.full_like(row, spec.pad_id)
            text[:end] = np.concatenate([row[: count - 1], np.resize(words, length)])[:end]
            text[end - 1] = row[count - 1]
            rows.append(text)
    return np.stack(rows)


def cut_failures(cuts: tuple[CutFidelity, ...], thresholds: Thresholds) -> list[str]:
    """Return what missed its threshold, in words."""
    return [
        f"texts cut to {cut.length} tokens, {cut.ensemble}: cosine to {label} {value:.6f} is under "
        f"{thresholds.cosine_min}"
        for cut in cuts
        for label, value in (("the original", cut.cosine_min), ("uncut texts", cut.cut_cosine_min))
        if not value >= thresholds.cosine_min  # a NaN fails
    ]
