"""An index that is brought up to date is the index of the gallery as it is, with what it was built with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery import Embedded, Gallery, GalleryWriter, ImageFile, Shard, read_gallery
from cirrus_client.index import (
    BuildOptions,
    QuerySample,
    SavedIndex,
    SearchKind,
    Storage,
    build_index,
    open_index,
    update_index,
)
from tests.client.test_index import space, unit_rows
from tests.damage import flip_a_bit, rewrite_record

pytestmark = pytest.mark.slow

_DIM = 16
_ROWS = 120


def gallery_of(root: Path, numbers: set[int], vectors: int = 1) -> Gallery:
    """Write a gallery of numbered shards. A number above 100 has the images of the number below it, embedded anew."""
    writer = GalleryWriter.open(root, images="/photos", space=space(_DIM, vectors))
    for number in numbers:
        files = tuple(ImageFile(f"{number % 100:03d}/{row:04d}.jpg", 1, number) for row in range(_ROWS))
        values = unit_rows(number, _ROWS * vectors, _DIM).reshape(_ROWS, *space(_DIM, vectors).item_shape)
        digests = tuple(hashlib.sha256(values[row].tobytes()).hexdigest() for row in range(_ROWS))
        writer.commit(Shard(files), Embedded(values, files, digests=digests))
    return read_gallery(root)


def _queries() -> QuerySample:
    return QuerySample(unit_rows(999, 60, _DIM), "a test")


def _check_is_of(saved: SavedIndex, gallery: Gallery, vectors: int) -> None:
    """Check the answers of a search over all vectors against brute force, by the images' paths."""
    asked = unit_rows(7, 5, _DIM)
    scores = np.einsum("bd,nvd->bnv", asked, gallery.embeddings.reshape(len(gallery), vectors, _DIM)).max(axis=2)
    everything = np.ones(len(gallery), dtype=np.bool_)
    hits = saved.index.search_among(asked, 20, everything)  # type: ignore[attr-defined]
    paths = np.array(gallery.paths)
    row_of = {path: row for row, path in enumerate(paths.tolist())}
    for query in range(len(asked)):
        found = [row_of[item.id] for item in saved.items.rows(hits.rows[query].tolist())]
        np.testing.assert_allclose(scores[query][found], -np.sort(-scores[query])[:20], atol=2e-3)
    near = saved.index.search(gallery.embeddings.reshape(-1, _DIM)[:: 17 * vectors].copy(), 1)
    nearest = [item.id for item in saved.items.rows(near.rows[:, 0].tolist())]
    assert np.mean(np.array(nearest) == paths[::17]) > 0.9


@settings(max_examples=25, deadline=None)
@given(
    before=st.sets(st.integers(1, 8), min_size=2, max_size=6),
    after=st.sets(st.integers(1, 8), min_size=2, max_size=6),
    kind=st.sampled_from(SearchKind),
    storage=st.sampled_from(Storage),
    vectors=st.sampled_from([1, 3]),
)
def test_an_updated_index_is_that_of_the_gallery(
    tmp_path_factory, before: set[int], after: set[int], kind: SearchKind, storage: Storage, vectors: int
) -> None:
    root = tmp_path_factory.mktemp("update")
    old = gallery_of(root / "before", before, vectors)
    build_index(old, root / "index", options=BuildOptions(kind, storage, _queries()))
    gallery = gallery_of(root / "after", after, vectors)
    updated = update_index(gallery, root / "index", queries=_queries())
    assert (updated.kind, updated.storage, updated.count) == (kind, storage, len(gallery))
    assert (updated.agreement is None) == ((kind, storage) == (SearchKind.EXACT, Storage.FLOAT32))
    _check_is_of(open_index(root / "index"), gallery, vectors)


@pytest.mark.parametrize("kind", [SearchKind.APPROXIMATE, SearchKind.RABITQ])
def test_centres_and_codes_of_unchanged_images_are_taken_over(tmp_path: Path, kind: SearchKind, monkeypatch) -> None:
    build_index(gallery_of(tmp_path / "before", {1, 2, 3, 4}), tmp_path / "index", options=BuildOptions(kind))

    def trained(*_: object) -> None:
        raise AssertionError("an update places no centres anew")

    for name in ("IndexIVFFlat", "IndexIVFRaBitQ"):
        monkeypatch.setattr(getattr(faiss, name), "train", trained)
    gallery = gallery_of(tmp_path / "after", {1, 3, 4, 5, 6})
    update_index(gallery, tmp_path / "index")
    _check_is_of(open_index(tmp_path / "index"), gallery, 1)


def test_a_gallery_that_has_grown_much_gets_new_centres(tmp_path: Path) -> None:
    options = BuildOptions(SearchKind.APPROXIMATE)
    build_index(gallery_of(tmp_path / "before", {1}), tmp_path / "index", options=options)
    gallery = gallery_of(tmp_path / "after", set(range(1, 12)))
    update_index(gallery, tmp_path / "index")
    built = faiss.read_index(str(tmp_path / "index" / "vectors.faiss"))
    build_index(gallery, tmp_path / "anew", options=options)
    assert built.nlist == faiss.read_index(str(tmp_path / "anew" / "vectors.faiss")).nlist


def test_images_that_were_embedded_again_get_their_new_vectors(tmp_path: Path) -> None:
    options = BuildOptions(SearchKind.APPROXIMATE)
    build_index(gallery_of(tmp_path / "before", {1, 2, 3}), tmp_path / "index", options=options)
    gallery = gallery_of(tmp_path / "after", {1, 102, 3})
    update_index(gallery, tmp_path / "index")
    _check_is_of(open_index(tmp_path / "index"), gallery, 1)


def price_of(saved: SavedIndex, id: str) -> object:
    row = saved.items.find(id)
    assert row is not None
    return saved.items.rows([row])[0].metadata["price"]


def test_metadata_and_root_stay_unless_they_are_given(tmp_path: Path) -> None:
    metadata = pa.table({"image_path": ["001/0003.jpg", "002/0003.jpg", "003/0003.jpg"], "price": [1, 2, 3]})
    build_index(
        gallery_of(tmp_path / "before", {1, 2}), tmp_path / "index", metadata=metadata, images="https://a.example"
    )
    update_index(gallery_of(tmp_path / "after", {2, 3}), tmp_path / "index")
    saved = open_index(tmp_path / "index")
    assert saved.manifest.images == "https://a.example"
    assert (price_of(saved, "002/0003.jpg"), price_of(saved, "003/0003.jpg")) == (2, None)
    update_index(read_gallery(tmp_path / "after"), tmp_path / "index", metadata=metadata, images="/photos")
    saved = open_index(tmp_path / "index")
    assert price_of(saved, "003/0003.jpg") == 3
    assert saved.manifest.images == "/photos"


def test_an_index_of_another_space_a_damaged_one_and_none_are_refused_and_kept(tmp_path: Path) -> None:
    gallery = gallery_of(tmp_path / "gallery", {1, 2})
    with pytest.raises(SearchIndexError, match="there is no such folder; `cirrus index`"):
        update_index(gallery, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    build_index(gallery_of(tmp_path / "other", {1}, vectors=3), tmp_path / "index")
    with pytest.raises(SearchIndexError, match="another space, which differs in") as refused:
        update_index(gallery, tmp_path / "index")
    assert refused.value.field == "space"
    assert open_index(tmp_path / "index").manifest.count == _ROWS
    build_index(gallery, tmp_path / "damaged", options=BuildOptions(SearchKind.APPROXIMATE))
    flip_a_bit(tmp_path / "damaged" / "vectors.faiss", 10_000)
    with pytest.raises(SearchIndexError, match=r"vectors\.faiss is corrupted"):
        update_index(gallery, tmp_path / "damaged")


def test_an_index_from_before_shards_were_kept_is_built_anew(tmp_path: Path) -> None:
    build_index(
        gallery_of(tmp_path / "before", {1, 2}), tmp_path / "index", options=BuildOptions(SearchKind.APPROXIMATE)
    )
    rewrite_record(tmp_path / "index" / "index.json", shards=[])
    gallery = gallery_of(tmp_path / "after", {1, 2, 3})
    update_index(gallery, tmp_path / "index")
    _check_is_of(open_index(tmp_path / "index"), gallery, 1)
