"""A collection in Milvus is brought up to date with its gallery while it is searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("milvus_lite", reason="Milvus is not installed (pip install 'cirrus-cir[milvus-lite]')")

from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery import Gallery
from cirrus_client.index import BuildOptions, build_index, open_index, update_index
from cirrus_client.index.milvus import MilvusIndex
from tests.client.test_index import unit_rows
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


def _best(index: object, items: object, gallery: Gallery) -> list[list[str]]:
    rows = index.search(unit_rows(7, 5, gallery.space.dim), 10).rows  # type: ignore[attr-defined]
    return [[item.id for item in items.rows(row.tolist())] for row in rows]  # type: ignore[attr-defined]


def _exact(gallery: Gallery) -> list[list[str]]:
    asked = unit_rows(7, 5, gallery.space.dim)
    vectors = gallery.embeddings.reshape(len(gallery), gallery.space.vectors, -1)
    best = np.argsort(-np.einsum("bd,nvd->bnv", asked, vectors).max(axis=2), axis=1)[:, :10]
    return [[gallery.paths[row] for row in of_query] for of_query in best]
