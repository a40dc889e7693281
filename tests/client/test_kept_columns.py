"""Columns of metadata, of whatever type, are kept so that an answer can say them, or are refused by name."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cirrus_client.errors import SearchIndexError
from cirrus_client.gallery import Gallery, read_gallery
from cirrus_client.index import build_index, open_index, read_metadata, update_index

pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'cirrus-cir[search]')")

from tests.client.test_index import space, unit_rows, write_gallery

NAMES = [f"{number:06d}.jpg" for number in range(3)]
NS = 1_700_000_000_000_000_001
MOMENT = datetime(2023, 11, 14, 22, 13, 20)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 3, 8), shard_size=2)
    return read_gallery(tmp_path / "gallery")


def metadata_of(folder: Path, **columns: Any) -> pa.Table:
    """Return what is read of a Parquet file with these columns."""
    pq.write_table(pa.table(columns), folder / "metadata.parquet")
    return read_metadata(folder / "metadata.parquet")


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (pa.timestamp("ns"), NS, MOMENT),
        (pa.struct([("at", pa.timestamp("ns"))]), {"at": NS}, {"at": MOMENT}),
        (pa.list_(pa.timestamp("ns")), [NS], [MOMENT]),
        (pa.duration("ns"), 5_001, timedelta(microseconds=5)),
        (pa.time64("ns"), 5_001, time(0, 0, 0, 5)),
        (pa.date64(), date(2026, 5, 31), date(2026, 5, 31)),
        (pa.string_view(), "a", "a"),
        (pa.binary_view(), b"a", b"a"),
        (pa.decimal128(10, 2), Decimal("12.50"), 12.5),
        (pa.decimal128(10, 2), Decimal("19.99"), 19.99),
        (pa.list_(pa.decimal128(10, 2)), [Decimal("19.99"), None], [19.99, None]),
        (pa.struct([("price", pa.decimal256(60, 2))]), {"price": Decimal("-3.30")}, {"price": -3.3}),
        (pa.decimal128(18, 0), Decimal(2**53 + 1), 2**53 + 1),
    ],
    ids=str,
)
def test_a_value_comes_back_as_one_of_python_itself(
    gallery: Gallery, tmp_path: Path, type_: pa.DataType, value: Any, expected: Any
) -> None:
    metadata = metadata_of(tmp_path, image_path=NAMES, column=pa.array([value, None, value], type_))
    build_index(gallery, tmp_path / "index", metadata=metadata)
    found = [item.metadata["column"] for item in open_index(tmp_path / "index").items.rows(range(3))]
    assert found == [expected, None, expected]
    assert type(found[0]) is type(expected), "pandas, where it is installed, has types of its own"


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.date32(), 4_000_000),
        (pa.timestamp("ms"), 4 * 10**14),
        (pa.timestamp("ms", "Mars/Olympus"), 0),
        (pa.list_(pa.date32()), [4_000_000]),
    ],
    ids=str,
)
def test_a_time_that_no_answer_can_say_is_refused_with_its_column(
    gallery: Gallery, tmp_path: Path, type_: pa.DataType, value: Any
) -> None:
    metadata = metadata_of(tmp_path, image_path=NAMES, until=pa.array([value, None, None], type_))
    with pytest.raises(SearchIndexError, match=r"'until'.* outside the years 1 to 9999 or in a time zone"):
        build_index(gallery, tmp_path / "index", metadata=metadata)


@pytest.mark.parametrize("paths", [pa.array(NAMES).dictionary_encode(), pa.array(NAMES, pa.string_view())])
def test_paths_are_texts_however_they_are_stored(tmp_path: Path, paths: pa.Array) -> None:
    assert metadata_of(tmp_path, image_path=paths)["image_path"].to_pylist() == NAMES


def test_rows_without_a_path_are_left_out(gallery: Gallery, tmp_path: Path) -> None:
    build_index(gallery, tmp_path / "index", metadata=pa.table({"image_path": [NAMES[0], None, None], "n": [1, 2, 3]}))
    assert [item.metadata["n"] for item in open_index(tmp_path / "index").items.rows(range(3))] == [1, None, None]


def test_lists_of_a_fixed_size_may_be_missing_for_some_images(gallery: Gallery, tmp_path: Path) -> None:
    """Parquet has no null among them, and the build ended in a traceback."""
    sizes = pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))
    build_index(gallery, tmp_path / "index", metadata=pa.table({"image_path": NAMES[:2], "sizes": sizes}))
    found = [item.metadata["sizes"] for item in open_index(tmp_path / "index").items.rows(range(3))]
    assert found == [[1, 2], [3, 4], None]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(NAMES)] * 3, ["image_path", "a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(SearchIndexError, match="several columns named a"):
        read_metadata(tmp_path / "twice.parquet")


def test_metadata_that_names_no_image_is_refused_with_an_example(gallery: Gallery, tmp_path: Path) -> None:
    absolute = pa.table({"image_path": [f"/photos/{name}" for name in NAMES], "n": [1, 2, 3]})
    with pytest.raises(SearchIndexError, match=r"'/photos/000000.jpg', the gallery's like '000000.jpg'"):
        build_index(gallery, tmp_path / "index", metadata=absolute)


def test_the_items_of_another_index_are_metadata_without_their_checksums(gallery: Gallery, tmp_path: Path) -> None:
    build_index(gallery, tmp_path / "old", metadata=pa.table({"image_path": NAMES, "n": [1, 2, 3]}))
    items = read_metadata(tmp_path / "old" / "items.parquet")
    stale = items.set_column(items.column_names.index("cirrus:sha256"), "cirrus:sha256", pa.array(["x", "y", "z"]))
    build_index(gallery, tmp_path / "index", metadata=stale)
    update_index(gallery, tmp_path / "index")
    opened = open_index(tmp_path / "index")
    assert opened.manifest.metadata == ("n",)
    assert [item.metadata for item in opened.items.rows([0])] == [{"n": 1}]
