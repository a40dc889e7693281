"""Values of columns as JSON: the same from FAISS and from Milvus, whatever their type."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("fastapi", reason="the service is not installed (pip install 'cirrus-cir[service]')")

from cirrus_client.index.milvus.fields import fields_of, held, stored
from cirrus_client.service.models import ItemAnswer


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"\xff\xfe\xff"], "//7/"),
        ([{"thumb": b"\xff\xfe\xff", "at": datetime(2026, 5, 31, 12)}], {"thumb": "//7/", "at": "2026-05-31T12:00:00"}),
        ([[date(2026, 5, 31)]], ["2026-05-31"]),
        ([timedelta(seconds=5)], "PT5S"),
        ([[1.5, float("nan")]], [1.5, None]),
    ],
    ids=["bytes", "struct", "list", "duration", "nan"],
)
def test_a_value_is_the_same_json_from_every_backend(values: list[Any], expected: Any) -> None:
    column = pa.chunked_array([values])
    (field,) = fields_of(pa.schema([("column", column.type)]))
    for value in (column.to_pylist()[0], held(stored(column, field), field)[0]):
        answer = ItemAnswer(id="a.jpg", collection="a", metadata={"column": value}, image="/")
        assert json.loads(answer.model_dump_json())["metadata"]["column"] == expected
