"""Read Parquet files. Here is the only code that does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cirrus_client.errors import StoredDataError


def read_parquet(
    path: Path, *, schema: pa.Schema | None = None, raises: type[StoredDataError], way_out: str
) -> pa.Table:
    """Return the table in a Parquet file.

    schema: columns that it must have, with their types and without nulls; others may be there as well. way_out: what
    the user can do about a damaged file. Raises `raises`, with the path.
    """
    try:
        with pq.ParquetFile(path) as file:  # read_table would take "year=2026" in the path for a column
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise raises(f"{path} can't be read ({error}); {way_out}", path=path) from None
    for field in schema or ():
        if field.name not in table.column_names:
            raise raises(
                f"{path} has no column '{field.name}', only {', '.join(table.column_names)}; {way_out}", path=path
            )
        column = table[field.name]
        if column.type != field.type or column.null_count:
            raise raises(
                f"{path}: its column '{field.name}' is {column.type} with {column.null_count} empty places, expected "
                f"{field.type} without; {way_out}",
                path=path,
            )
    return table


def names_taken_twice(columns: Sequence[str]) -> list[str]:
    """Return the names that several columns have, sorted. Parquet allows that, and rows as dictionaries do not."""
    return sorted({name for name in columns if columns.count(name) > 1})


def parquet_schema(file: BinaryIO) -> pa.Schema:
    """Return the columns of an open Parquet file. Raises ArrowException or OSError if it is none."""
    file.seek(0)
    return pq.read_schema(file)


def parquet_batches(file: BinaryIO, *, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an open Parquet file in order, `rows` at once, with about that much in memory.

    Raises ArrowException or OSError where the file is broken.
    """
    file.seek(0)
    yield from pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False).iter_batches(rows, use_threads=False)
