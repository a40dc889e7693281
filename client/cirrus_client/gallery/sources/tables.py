"""Parquet files with a column of images: their bytes, or their paths or URLs.

img2dataset writes the bytes in a column `jpg` and the name in `key`; datasets of Hugging Face have a struct `image`
with `bytes` and `path`, or with the path alone where the files stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from cirrus_client.errors import GalleryError, UnreadableImage
from cirrus_client.gallery.source import AnySource, ImageFile, Listing, Source
from cirrus_client.gallery.sources.columns import Columns
from cirrus_client.gallery.sources.container import Container
from cirrus_client.gallery.sources.listed import Entry, ListedSource
from cirrus_client.gallery.sources.store import fetched, find, joined, scratch_file, split, write_scratch
from cirrus_client.kept_columns import is_text, kept_column, kept_type
from cirrus_client.parquet import names_taken_twice, parquet_batches, parquet_schema

_BYTES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
_PATHS = ("image_path", "path", "file_name", "filepath", "image", "image_url", "url")
_IDS = ("key", "__key__", "id", "image_id")
_ROWS_AT_ONCE = 16


def open_table(location: str, columns: Columns) -> AnySource:
    """Return the images of Parquet files that a pattern names, like `data/train-*.parquet`.

    The first file says whether a column of bytes or of paths has the images. Raises GalleryError if no column does or
    two have one name, and UnreadableImage if that file can't be read.
    """
    root = split(location)[0]
    first = find(location)[0]
    with fetched(joined(root, first.path)) as file:
        schema = _told_apart(_schema(file, first.path), first.path)
        image = _image_column(schema, columns.image, first.path)
        of_bytes = _is_bytes(schema.field(image).type) and not _has_paths_alone(file, image)
    if columns.id == image:
        raise GalleryError(f"images {location}: column '{image}' has the images, and can't name them as well")
    if of_bytes:
        return TableSource(location, image, columns.id)
    if columns.id is not None:
        raise GalleryError(
            f"images {location}: column '{image}' has paths, which name the images; leave --id-column out"
        )
    return ListedSource(root, partial(_paths, location, image), name=location)


class TableSource:
    """Parquet files with a column of bytes. A file is a part, and its images are named `FILE/ID`.

    The other columns come with the images.
    """

    def __init__(self, pattern: str, image: str, id: str | None) -> None:
        """Name the files. image: the column of bytes, or of structs of `bytes` and `path`.

        id: the column of names; None takes `path` of the structs, a column that is named like one, or the row's number.
        """
        self._pattern = pattern
        self._image = image
        self._id = id

    @property
    def root(self) -> str:
        """The folder, or the prefix of the URL, in which all the files are."""
        return split(self._pattern)[0]

    def parts(self) -> Listing:
        """See `PartedSource.parts`. The chosen columns are part of a file's etag: other ones are other images."""
        return Listing(
            tuple(
                ImageFile(part.path, part.size, part.mtime_ns, f"{part.etag} {self._image} {self._id or ''}".strip())
                for part in find(self._pattern)
            )
        )

    @contextmanager
    def open(self, part: ImageFile) -> Iterator[Source]:
        """See `PartedSource.open`. The images are written to a temporary file, one after the other."""
        with (
            fetched(joined(self.root, part.path)) as file,
            scratch_file() as images,
        ):
            container = Container(self.root, part, images)
            self._fill(container, file, images, part.path)
            yield container

    def _fill(self, container: Container, file: BinaryIO, images: BinaryIO, name: str) -> None:
        schema = _schema(file, name)
        if names_taken_twice(schema.names):
            container.leave_unread("two of its columns have one name")
            return
        if self._image not in schema.names or not _is_bytes(schema.field(self._image).type):
            container.leave_unread(f"it has no column '{self._image}' of bytes")
            return
        id_column = self._id or next((column for column in _IDS if column in schema.names), None)
        if self._id is not None and self._id not in schema.names:
            container.leave_unread(f"it has no column '{self._id}'")
            return
        row = place = 0
        try:
            for batch in parquet_batches(file, rows=_ROWS_AT_ONCE):
                for entry in _entries(batch):
                    content, path = _content(entry.pop(self._image))
                    named = entry.get(id_column) if id_column else None
                    identity = str(path if self._id is None and path else f"{row:08d}" if named is None else named)
                    if content is None:
                        container.pass_over(identity.lstrip("/"), f"row {row:,} has no bytes of an image")
                    else:
                        write_scratch(images, content)
                        container.add(identity.lstrip("/"), place, len(content), content, entry)
                        place += len(content)
                    row += 1
        except (pa.ArrowException, OSError) as error:
            container.leave_unread(f"it is broken after {row:,} rows: {error}")


def _paths(location: str, image: str) -> Iterable[Entry]:
    root = split(location)[0]
    for part in find(location):
        with fetched(joined(root, part.path)) as file:
            if image not in _told_apart(_schema(file, part.path), part.path).names:
                raise GalleryError(f"images {part.path}: has no column '{image}'")
            for batch in parquet_batches(file, rows=1024):
                for entry in _entries(batch):
                    content, path = _content(entry.pop(image))
                    if content is not None:
                        raise GalleryError(
                            f"images {part.path}: has bytes in column '{image}', and the first file has paths alone; "
                            "embed them one after the other"
                        )
                    if path:
                        yield str(path), entry


def _entries(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch. A column with values that Python can't say, like the year 12000, is one of texts."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = kept_column(pa.chunked_array([column])).to_pylist()
        except ValueError:
            columns[name] = _texts(column)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _texts(column: pa.Array) -> list[str | None]:
    try:
        texts: list[str | None] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        return [column.slice(row, 1).to_string(skip_new_lines=True) for row in range(len(column))]
    return texts


def _schema(file: BinaryIO, name: str) -> pa.Schema:
    try:
        return parquet_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableImage(f"can't read {name} as Parquet: {error}", path=name) from None


def _told_apart(schema: pa.Schema, name: str) -> pa.Schema:
    """Return the columns. Raises GalleryError if two have one name."""
    twice = names_taken_twice(schema.names)
    if twice:
        raise GalleryError(f"images {name}: two columns are called '{twice[0]}'; rename one of them")
    return schema


def _image_column(schema: pa.Schema, wanted: str | None, name: str) -> str:
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is not None:
        if wanted not in schema.names or not (
            _is_bytes(schema.field(wanted).type) or _is_paths(schema.field(wanted).type)
        ):
            raise GalleryError(f"images {name}: no column '{wanted}' of bytes or paths; its columns: {found}")
        return wanted
    of_bytes = [field.name for field in schema if _is_bytes(field.type)]
    of_paths = [field.name for field in schema if _is_paths(field.type)]
    named = next((column for column in _BYTES if column in of_bytes), None)
    chosen = named or (of_bytes[0] if len(of_bytes) == 1 else None)
    chosen = chosen or next((column for column in _PATHS if not of_bytes and column in of_paths), None)
    if chosen is None:
        raise GalleryError(f"images {name}: name the column of images with --image-column; its columns: {found}")
    return chosen


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(place).name for place in range(kind.num_fields)]
        return "bytes" in names and _is_bytes(kind.field("bytes").type)
    kind = kept_type(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_paths(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(place).name for place in range(kind.num_fields)]
        return "path" in names and is_text(kind.field("path").type)
    return is_text(kind)


def _has_paths_alone(file: BinaryIO, image: str) -> bool:
    """Return whether no image of a column of bytes has some, and there is a path of one."""
    has_path = False
    try:
        for batch in parquet_batches(file, rows=_ROWS_AT_ONCE):
            for content, path in map(_content, batch.column(image).to_pylist()):
                if content is not None:
                    return False
                has_path = has_path or bool(path)
    except (pa.ArrowException, OSError):
        return False  # what comes before the damage is embedded
    return has_path


def _content(cell: bytes | str | Mapping[str, Any] | None) -> tuple[bytes | None, str | None]:
    """Return the bytes of a cell, and its path or the name that comes with them, or None for each."""
    if isinstance(cell, Mapping):
        return cell.get("bytes"), cell.get("path")
    return (None, cell) if isinstance(cell, str) else (cell, None)
