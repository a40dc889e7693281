"""Composed search: an encoder, an index and the paths of the gallery's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cirrus_client.encoders.protocol import Encoder, ImageInput
from cirrus_client.errors import SearchIndexError, SpaceMismatch
from cirrus_client.files import is_foreign, replace_directory
from cirrus_client.gallery import Gallery
from cirrus_client.index import FaissIndex, Index, SearchKind
from cirrus_client.index.faiss_index import MANIFEST

_ITEMS = "items.parquet"


@dataclass(frozen=True)
class Match:
    """One answer: its place (1 is best), the gallery image, and the similarity."""

    rank: int
    image: Path
    score: float


class Retriever:
    """Answers "this image, but ..." with gallery images, best first."""

    def __init__(self, encoder: Encoder, index: Index, images: Sequence[Path]) -> None:
        """images: the path of every gallery row.

        Raises SpaceMismatch if encoder and index live in different spaces.
        """
        ours, theirs = encoder.space, index.space
        if ours.fingerprint != theirs.fingerprint:
            differing = sorted(
                name
                for name in {*ours.components, *theirs.components}
                if ours.components.get(name) != theirs.components.get(name)
            )
            raise SpaceMismatch(
                f"the query encoder's space is {ours.fingerprint}, the index's space is {theirs.fingerprint}; they "
                f"differ in {', '.join(differing) or 'width or similarity'}: embed the gallery with this "
                "encoder's bundle"
            )
        if len(index) != len(images):
            raise SearchIndexError(f"the index has {len(index)} rows, but {len(images)} images are named")
        self._encoder = encoder
        self._index = index
        self._images = tuple(images)

    def search(self, *, image: ImageInput | None = None, text: str | None = None, k: int = 10) -> list[Match]:
        """Return the k best gallery images for a reference image and an edit text, best first.

        Raises InvalidImage, InvalidText or UnsupportedQuery for a query that can't be encoded.
        """
        return self.search_many([image], [text], k=k)[0]

    def search_many(
        self, images: Sequence[ImageInput | None], texts: Sequence[str | None], *, k: int = 10
    ) -> list[list[Match]]:
        """Return the k best gallery images for each (image, text) pair."""
        hits = self._index.search(self._encoder.encode_queries(images, texts), k)
        return [
            [
                Match(rank, self._images[row], float(score))
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
                if row >= 0
            ]
            for rows, scores in zip(hits.rows, hits.scores, strict=True)
        ]


def build_index(gallery: Gallery, out: Path, *, kind: SearchKind = SearchKind.EXACT) -> FaissIndex:
    """Build an index over an embedded gallery and save it with its images' paths.

    An older index at `out` is replaced only when the new one is complete. Raises SearchIndexError if `out` is
    something else.
    """
    if is_foreign(out, MANIFEST):
        raise SearchIndexError(f"{out} exists and is not an index; name another path or remove it")
    index = FaissIndex(gallery.space, gallery.embeddings, kind=kind)
    paths = [str(gallery.images / path) for path in gallery.paths]
    with replace_directory(out) as root:
        pq.write_table(pa.table({"image_path": pa.array(paths, pa.string())}), root / _ITEMS)
        index.save(root)
    return index


def open_retriever(encoder: Encoder, index_root: Path) -> Retriever:
    """Open a saved index for an encoder. Raises SearchIndexError or SpaceMismatch."""
    index = FaissIndex.open(index_root)
    try:
        items = pq.read_table(index_root / _ITEMS)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise SearchIndexError(f"index {index_root}: {_ITEMS} can't be read ({error}); build it again") from None
    return Retriever(encoder, index, [Path(path) for path in items["image_path"].to_pylist()])
