"""A gallery's vectors, read in blocks that fit in memory, and exact search over them without an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import gcd
from operator import index

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery.store import Gallery

_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Part:
    """Rows of a gallery's embeddings. open: returns them, float32 [rows, *item_shape], and does not keep them open."""

    rows: int
    open: Callable[[], Embeddings]


@dataclass(frozen=True)
class GalleryVectors:
    """The vectors of N images, V of each; vector i belongs to image i // V.

    Reading them keeps one part and one block in memory at a time.
    """

    space: SpaceSpec
    parts: tuple[Part, ...]

    @staticmethod
    def of(gallery: Gallery) -> GalleryVectors:
        """Return the vectors of an embedded gallery."""
        parts = (Part(rows, partial(gallery.shard_embeddings, shard)) for shard, rows in gallery.rows.items())
        return GalleryVectors(gallery.space, tuple(parts))

    @staticmethod
    def in_memory(space: SpaceSpec, embeddings: Embeddings) -> GalleryVectors:
        """Return the vectors of embeddings, float32 [N, *item_shape]."""
        return GalleryVectors(space, (Part(len(embeddings), lambda: embeddings),))

    def __len__(self) -> int:
        """Number of vectors."""
        return self.images * self.space.vectors

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(part.rows for part in self.parts)

    def blocks(self) -> Iterator[Embeddings]:
        """Yield all vectors in order, float32 [n, D], in memory.

        Raises SearchIndexError if they do not fit the space or are not finite, GalleryError for a damaged shard.
        """
        images_per_block = max(1, _BLOCK_BYTES // (4 * self.space.dim * self.space.vectors))
        first = 0
        for part in self.parts:
            embeddings = part.open()
            check_vectors("gallery", embeddings, self.space.item_shape, finite=False)
            for start in range(0, part.rows, images_per_block):
                block = np.ascontiguousarray(embeddings[start : start + images_per_block])
                _check_finite("gallery", block, first + start)
                yield block.reshape(-1, self.space.dim)
            first += part.rows

    def sample(self, count: int) -> Embeddings:
        """Return about `count` vectors that are evenly spread over the gallery, float32 [n, D].

        Of an image's V vectors, each place has an equal share: they come of one query token each, and differ by it.
        """
        step = max(1, len(self) // count)
        while gcd(step, self.space.vectors) > 1:
            step -= 1
        taken, first = [], 0
        for block in self.blocks():
            taken.append(block[-first % step :: step].copy())
            first += len(block)
        return np.concatenate(taken)

    def best_scores(self, queries: Embeddings, k: int) -> NDArray[np.float32]:
        """Search exactly: return the k best scores over all images for each query, float32 [B, k], best first."""
        best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
        for block in self.blocks():
            scores = (queries @ block.T).reshape(len(queries), -1, self.space.vectors).max(axis=2)
            best = np.concatenate([best, scores], axis=1)
            if best.shape[1] > k:
                best = np.partition(best, -k, axis=1)[:, -k:]
        return -np.sort(-best, axis=1)

    def scores_of(self, queries: Embeddings, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the exact scores of images for each query, float32 [B, n]. rows: images, int64 [B, n]."""
        wanted, place = np.unique(rows, return_inverse=True)
        vectors = np.empty((len(wanted), self.space.vectors, self.space.dim), dtype=np.float32)
        first = 0
        for part in self.parts:
            here = np.flatnonzero((wanted >= first) & (wanted < first + part.rows))
            if len(here):
                vectors[here] = part.open()[wanted[here] - first].reshape(len(here), self.space.vectors, -1)
            first += part.rows
        found = vectors[place.reshape(rows.shape)]
        scores: NDArray[np.float32] = np.einsum("bnvd,bd->bnv", found, queries).max(axis=2)
        return scores


def check_k(k: object) -> int:
    """Return the number of wanted answers as an int. Raises SearchIndexError unless it is an integer of at least 1."""
    try:
        count = index(k)  # type: ignore[arg-type]  # raises TypeError for what is not an integer
    except TypeError:
        count = 0
    if count < 1 or isinstance(k, bool):
        raise SearchIndexError(f"k must be an integer of at least 1, not {k!r}")
    return count


def check_vectors(what: str, vectors: Embeddings, shape: tuple[int, ...], *, finite: bool = True) -> None:
    """Raise SearchIndexError unless vectors are float32 [n, *shape] and finite. finite: False skips that check."""
    if vectors.ndim < 1 or vectors.shape[1:] != shape:
        expected = ", ".join(["n", *(str(size) for size in shape)])
        raise SearchIndexError(f"{what}: expected shape [{expected}], found {list(vectors.shape)}")
    if vectors.dtype != np.float32:
        raise SearchIndexError(f"{what}: expected float32, found {vectors.dtype}")
    if finite:
        _check_finite(what, vectors, 0)


def _check_finite(what: str, vectors: Embeddings, first: int) -> None:
    finite = np.isfinite(vectors).all(axis=tuple(range(1, vectors.ndim)))
    if not finite.all():
        raise SearchIndexError(f"{what}: row {first + int(np.argmin(finite))} holds values that are not finite")
