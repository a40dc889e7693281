"""A collection in Milvus is brought up to date with its gallery while it is searched."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("milvus_lite", reason="Milvus is not installed (pip install 'cirrus-cir[milvus-lite]')")

from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery import Embedded, Gallery, GalleryWriter, ImageFile, Shard, read_gallery
from cirrus_client.index import BuildOptions, build_index, open_index, update_index
from cirrus_client.index.milvus import MilvusIndex
from tests.client.test_index import space, unit_rows
from tests.client.test_index_update import gallery_of, price_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("vectors", [1, 3])
def test_an_update_changes_the_collection_under_the_eyes_of_who_searches_it(tmp_path: Path, vectors: int) -> None:
    metadata = pa.table({"image_path": ["001/0003.jpg", "002/0003.jpg", "003/0003.jpg"], "price": [1, 2, 3]})
    options = BuildOptions(uri=str(tmp_path / "milvus.db"), collection="catalogue")
    before = gallery_of(tmp_path / "before", {1, 2, 3}, vectors)
    build_index(before, tmp_path / "index", backend="milvus", options=options, metadata=metadata)
    serving = open_index(tmp_path / "index")
    kept = serving.items.find("003/0003.jpg")
    after = gallery_of(tmp_path / "after", {102, 3, 4}, vectors)  # 1 is gone, 2 was embedded again, 4 is new
    updated = update_index(after, tmp_path / "index")
    assert (updated.count, updated.metadata) == (len(after), ("price",))
    for saved in (serving, open_index(tmp_path / "index")):
        assert len(saved.index) == len(saved.items) == len(after)
        assert sorted(saved.items.ids()) == sorted(after.paths)
        assert _best(saved.index, saved.items, after) == _exact(after)
        assert saved.items.find("003/0003.jpg") == kept
        assert [price_of(saved, f"00{number}/0003.jpg") for number in (2, 3, 4)] == [2, 3, None]
    update_index(after, tmp_path / "index", metadata=metadata.set_column(1, "price", pa.array([7, 8, 9])))
    assert [price_of(serving, f"00{number}/0003.jpg") for number in (2, 3, 4)] == [8, 9, None]


def test_columns_that_the_collection_lacks_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    options = BuildOptions(uri=str(tmp_path / "milvus.db"), collection="catalogue")
    gallery = gallery_of(tmp_path / "gallery", {1})
    build_index(gallery, tmp_path / "index", backend="milvus", options=options)
    metadata = pa.table({"image_path": ["001/0003.jpg"], "price": [1]})
    with pytest.raises(SearchIndexError, match="the collection has no column 'price'"):
        update_index(gallery_of(tmp_path / "more", {1, 2}), tmp_path / "index", metadata=metadata)
    saved = open_index(tmp_path / "index")
    assert isinstance(saved.index, MilvusIndex)
    assert saved.manifest.count == len(saved.index) == len(gallery)


def test_columns_of_any_kind_stay_where_images_are_embedded_again(tmp_path: Path) -> None:
    options = BuildOptions(uri=str(tmp_path / "milvus.db"), collection="catalogue")
    before = gallery_of(tmp_path / "before", {1, 2})
    ids = ["001/0003.jpg", "002/0003.jpg"]
    kinds = {
        "tags": [["a"], ["b", "é"]],
        "size": [{"w": 1, "unit": "cm"}] * 2,
        "pairs": pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
        "mark": [b"\x00\xff"] * 2,
        "stock": [2**53 + 1, None],
    }
    metadata = pa.table({"image_path": ids, **kinds})
    build_index(before, tmp_path / "index", backend="milvus", options=options, metadata=metadata)
    saved = open_index(tmp_path / "index")

    def kept() -> list[object]:
        return [item.metadata for item in saved.items.rows([saved.items.find(id) for id in ids])]

    built = kept()
    assert built[1]["tags"] == ["b", "é"]
    update_index(gallery_of(tmp_path / "after", {101, 2}), tmp_path / "index")
    assert kept() == built


def test_metadata_stays_before_a_column_of_the_source_with_its_name(tmp_path: Path) -> None:
    options = BuildOptions(uri=str(tmp_path / "milvus.db"), collection="catalogue")
    metadata = pa.table({"image_path": ["a.jpg"], "price": [7]})
    build_index(
        _priced(tmp_path / "before", 1), tmp_path / "milvus", options=options, backend="milvus", metadata=metadata
    )
    build_index(_priced(tmp_path / "before", 1), tmp_path / "faiss", metadata=metadata)
    for name in ("faiss", "milvus"):
        update_index(_priced(tmp_path / "after", 2), tmp_path / name)
        saved = open_index(tmp_path / name)
        assert [price_of(saved, id) for id in ("a.jpg", "b.jpg")] == [7, None], name


def test_what_is_missing_in_the_collection_is_there_after_an_update(tmp_path: Path) -> None:
    """Because it was deleted, or by an update that was killed, before the gallery was as it had been again."""
    options = BuildOptions(uri=str(tmp_path / "milvus.db"), collection="catalogue")
    gallery = gallery_of(tmp_path / "gallery", {1, 2})
    build_index(gallery, tmp_path / "index", backend="milvus", options=options)
    saved = open_index(tmp_path / "index")
    assert isinstance(saved.index, MilvusIndex)
    assert saved.index.delete(["001/0003.jpg", "002/0007.jpg"]) == 2
    assert update_index(gallery, tmp_path / "index").count == len(saved.index) == 240
    assert _best(saved.index, saved.items, gallery) == _exact(gallery)


def test_what_a_killed_update_wrote_does_not_stay(tmp_path: Path) -> None:
    """The collection has images embedded again, and the index's folder, replaced last, knows nothing of them."""
    options = BuildOptions(uri=str(tmp_path / "milvus.db"), collection="catalogue")
    gallery = gallery_of(tmp_path / "gallery", {1, 2})
    build_index(gallery, tmp_path / "index", backend="milvus", options=options)
    shutil.copytree(tmp_path / "index", tmp_path / "before")
    update_index(gallery_of(tmp_path / "after", {101, 2}), tmp_path / "index")
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "before").rename(tmp_path / "index")
    update_index(gallery, tmp_path / "index")
    saved = open_index(tmp_path / "index")
    assert _best(saved.index, saved.items, gallery) == _exact(gallery)


def _priced(root: Path, time_ns: int) -> Gallery:
    """Write a gallery of two images whose source has a column `price`."""
    writer = GalleryWriter.open(root, images="/photos", space=space(16))
    files = tuple(ImageFile(name, 1, time_ns, metadata={"price": 1}) for name in ("a.jpg", "b.jpg"))
    writer.commit(Shard(files), Embedded(unit_rows(time_ns, 2, 16), files))
    return read_gallery(root)


def _best(index: object, items: object, gallery: Gallery) -> list[list[str]]:
    rows = index.search(unit_rows(7, 5, gallery.space.dim), 10).rows  # type: ignore[attr-defined]
    return [[item.id for item in items.rows(row.tolist())] for row in rows]  # type: ignore[attr-defined]


def _exact(gallery: Gallery) -> list[list[str]]:
    asked = unit_rows(7, 5, gallery.space.dim)
    vectors = gallery.embeddings.reshape(len(gallery), gallery.space.vectors, -1)
    best = np.argsort(-np.einsum("bd,nvd->bnv", asked, vectors).max(axis=2), axis=1)[:, :10]
    return [[gallery.paths[row] for row in of_query] for of_query in best]
