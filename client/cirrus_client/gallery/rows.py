"""Tables of files: the rows of a shard's `metadata` and `rejected`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from cirrus_client.gallery.layout import ACCEPTED_SCHEMA, FILE_SCHEMA, REJECTED_SCHEMA
from cirrus_client.gallery.source import ImageFile
from cirrus_client.gallery.stream import Rejected
from cirrus_client.kept_columns import as_texts

_RENAMED = "source_"
_DEEPEST = 20


def accepted_table(files: Sequence[ImageFile], digests: Sequence[str]) -> pa.Table:
    """Return the table of accepted files and the sha256 of their bytes, with the columns of their metadata.

    A column of the source that is named like one of the gallery gets the prefix `source_`. Values of a column that have
    no common type become texts.
    """
    table = _file_table(files).append_column("sha256", pa.array(digests, pa.string()))
    metadata = [{_renamed(name): value for name, value in file.metadata.items()} for file in files]
    for name in sorted({name for row in metadata for name in row}):
        table = table.append_column(name, _column([row.get(name) for row in metadata]))
    return table


def rejected_table(rejected: Sequence[Rejected]) -> pa.Table:
    """Return the table of rejected files, with the reasons and the sha256 of their bytes."""
    table = _file_table([item.file for item in rejected])
    for name in REJECTED_SCHEMA.names[table.num_columns :]:
        table = table.append_column(name, pa.array([getattr(item, name) for item in rejected], pa.string()))
    return table


def files_of(table: pa.Table) -> list[ImageFile]:
    """Return the files in a table, in the order of its rows, with their metadata."""
    others = [name for name in table.column_names if name not in ACCEPTED_SCHEMA.names]
    metadata: Iterable[dict[str, Any]] = (
        table.select(others).to_pylist() if others else ({} for _ in range(table.num_rows))
    )
    rows = table.select(FILE_SCHEMA.names).to_pylist()
    return [
        ImageFile(row["image_path"], row["size"], row["mtime_ns"], row["etag"], kept)
        for row, kept in zip(rows, metadata, strict=True)
    ]


def rejected_of(table: pa.Table) -> list[Rejected]:
    """Return the verdicts in a table of rejected files."""
    reasons, digests = table["reason"].to_pylist(), table["sha256"].to_pylist()
    files = files_of(table.select(FILE_SCHEMA.names))
    return [Rejected(*item) for item in zip(files, reasons, digests, strict=True)]


def _file_table(files: Sequence[ImageFile]) -> pa.Table:
    columns = {"image_path": [file.path for file in files]}
    return pa.table(
        columns | {name: [getattr(file, name) for file in files] for name in FILE_SCHEMA.names[1:]}, FILE_SCHEMA
    )


def _renamed(name: str) -> str:
    return f"{_RENAMED}{name}" if name in ACCEPTED_SCHEMA.names else name


def _column(values: Sequence[Any]) -> pa.Array:
    """Return values as a column that Parquet holds: of their common type, else texts. Empty objects alone are null."""
    try:
        column = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return as_texts(values)
    if pa.types.is_struct(column.type) and column.type.num_fields == 0:
        return pa.nulls(len(values))
    return column if _fits_parquet(column.type, _DEEPEST) else as_texts(values)


def _fits_parquet(type_: pa.DataType, depth: int) -> bool:
    """Return whether a type has no struct without fields, and is no deeper than Arrow can read."""
    inner = [type_.field(place).type for place in range(type_.num_fields)]
    if depth == 0 or (pa.types.is_struct(type_) and not inner):
        return False
    return all(_fits_parquet(one, depth - 1) for one in inner)
