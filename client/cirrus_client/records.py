"""Records are the JSON files that Cirrus writes and reads back. Here is the only code that reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from cirrus_client.errors import CirrusError, StoredDataError
from cirrus_client.files import NOT_UTF8, is_not_utf8, write_atomically
from cirrus_client.invalid_fields import first_problem
from cirrus_client.names import FolderRecord

R = TypeVar("R", bound="Record")
_SEAL = "checksum"
_FOLDERS = {
    FolderRecord.BUNDLE: ("a bundle", "cirrus export"),
    FolderRecord.SUGGESTER: ("a suggester", "cirrus export-suggester"),
    FolderRecord.REPOSITORY: ("a model repository", "cirrus repository"),
    FolderRecord.GALLERY: ("a gallery", "cirrus embed"),
    FolderRecord.INDEX: ("an index", "cirrus index"),
}


def _stays_below(path: str) -> str:
    pure = PurePosixPath(path)
    if "\0" in path or pure.is_absolute() or ".." in pure.parts or path != str(pure) or not pure.name:
        raise ValueError("it must be a relative path without '..', like graphs/gallery.onnx")
    return path


def _is_one_component(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("it must be the name of one file or folder, without '/'")
    return name


RelativePath = Annotated[str, AfterValidator(_stays_below)]
"""A file that a record names, relative to the record's folder and below it, in its shortest form."""

Name = Annotated[str, AfterValidator(_is_one_component)]
"""A name that becomes one file or folder."""


class Record(BaseModel):
    """The base class of contracts, manifests and reports. Records are frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GrownRecord(Record):
    """A record that has gained fields since its first release.

    A later field is written only where it differs from its default. Older clients can then read the file, and the
    JSON of an older record, which is part of a space's fingerprint, stays the same to the byte.
    """

    later_fields: ClassVar[frozenset[str]]

    @model_serializer(mode="wrap")
    def _leave_out_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        unchanged = {name for name in self.later_fields if getattr(self, name) == fields[name].default}
        return {name: value for name, value in content.items() if name not in unchanged}


def read_record(
    path: Path,
    kind: type[R],
    *,
    raises: type[StoredDataError],
    missing: str | None = None,
    way_out: str,
    sealed: bool = False,
) -> R:
    """Read a record from a JSON file.

    missing: the message if there is no such file; None for a `FolderRecord`, whose message says what the folder is
    instead. way_out: what the user can do about a damaged file. sealed: the file is one of `write_sealed`, and its
    checksum must be right. Raises `raises`, with the path and the name of the first wrong field.
    """
    if is_not_utf8(str(path)):
        raise raises(f"{path}: {NOT_UTF8}", path=path)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise raises(missing or _not_such_a_folder(path), path=path) from None
    except OSError as error:
        raise raises(f"{path} can't be read: {error.strerror}; {way_out}", path=path) from None
    if sealed:
        content, problem = _unsealed(content)
        if problem is not None:
            raise raises(f"{path}: {problem}; {way_out}", path=path)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        field, found = first_problem(error, content)
        raise raises(f"{path}: {found}; {way_out}", path=path, field=field) from None


def write_sealed(path: Path, record: Record) -> None:
    """Write a record atomically, with the sha256 of its content.

    Raises StoredDataError if its path, or one that it names, is not UTF-8.
    """
    content = record.model_dump(mode="json")
    for text in (str(path), *_texts(content)):
        if is_not_utf8(text):
            raise StoredDataError(f"{text}: {NOT_UTF8}", path=path)
    write_atomically(path, json.dumps({**content, _SEAL: _checksum(content)}, indent=2).encode() + b"\n")


def parse_record(content: str | bytes, kind: type[R], *, source: str, raises: type[CirrusError], way_out: str) -> R:
    """Read a record from JSON text. source: where the text came from, for the error message. Raises `raises`."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise raises(f"{source}: {first_problem(error, content)[1]}; {way_out}") from None


def _not_such_a_folder(record: Path) -> str:
    """Return the message about a folder without the record of its kind."""
    root = record.parent
    wanted, command = _FOLDERS[FolderRecord(record.name)]
    if not root.exists():
        return f"{root}: there is no such folder; `{command}` makes {wanted}"
    others = (kind for other, (kind, _) in _FOLDERS.items() if (root / other).exists())
    found = next((f" but {kind}" for kind in others), "")
    return f"{root} is not {wanted}{found}: it has no {record.name}; make one with `{command}`"


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in what JSON holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _unsealed(content: bytes) -> tuple[bytes, str | None]:
    """Return a sealed record's JSON without its checksum, and what is wrong with the checksum.

    What is not a JSON object is returned as it is.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return content, None
    if not isinstance(fields, dict):
        return content, None
    checksum = fields.pop(_SEAL, None)
    if checksum is None:
        return content, "it has no checksum, so an older version of Cirrus wrote it"
    if checksum != _checksum(fields):
        return content, "it is corrupted: its content does not have the checksum in it"
    return json.dumps(fields).encode(), None


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
