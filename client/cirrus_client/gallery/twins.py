"""Find the embedding of an image in a gallery by its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.gallery.layout import Layout, ShardRecord, read_manifest
from cirrus_client.gallery.store import Gallery

_KEY_BYTES = 16
_OPEN = 16


class Twins:
    """The embeddings of a gallery by the sha256 of their images. Takes about 130 bytes per image. For one thread."""

    def __init__(self, root: Path, shards: Iterable[tuple[str, list[str]]]) -> None:
        """Start with shards of the gallery: their ids, and the sha256 of the images of their rows."""
        self._layout = Layout(root)
        self._records: dict[str, ShardRecord] = {}
        self._gallery = Gallery(root, read_manifest(root), self._records)
        self._shards: list[str] = []
        self._places: dict[bytes, int] = {}
        self._open: dict[str, Embeddings] = {}
        for shard, digests in shards:
            self.add(shard, digests)

    def add(self, shard: str, digests: Iterable[str]) -> None:
        """Add a shard that was committed. An empty digest stands for an image whose bytes are not known."""
        number = len(self._shards) << 32
        self._shards.append(shard)
        self._places |= {_key(digest): number | row for row, digest in enumerate(digests) if digest}

    def embedding(self, digest: str) -> Embeddings | None:
        """Return the embedding of an image, float32 [*item_shape], or None if the gallery has none.

        Raises GalleryError if the shard that has it is damaged.
        """
        place = self._places.get(_key(digest))
        if place is None:
            return None
        rows = self._rows(self._shards[place >> 32])
        return None if rows is None else np.array(rows[place & 0xFFFFFFFF])

    def _rows(self, shard: str) -> Embeddings | None:
        if shard not in self._open:
            if not self._layout.record(shard).exists():
                return None  # it was replaced
            if shard not in self._records:
                self._records |= self._layout.shards()
            while len(self._open) >= _OPEN:
                del self._open[next(iter(self._open))]
            self._open[shard] = self._gallery.shard_embeddings(shard)
        return self._open[shard]


def _key(digest: str) -> bytes:
    return bytes.fromhex(digest)[:_KEY_BYTES]
