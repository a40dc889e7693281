"""Write files atomically, and check files against their sha256."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel

from cirrus_client.errors import StoredDataError

NOT_UTF8 = "the path is not UTF-8, and most libraries take no other: rename it"
_TEMPORARY = ".cirrus-tmp"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. If the block succeeds, flush the file to disk and rename it to `path`.

    Temporary files of earlier attempts whose process was killed are removed. An OSError in the block that names no file
    (disk full) is given the name `path`.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.name)
        with _temporary_beside(path, _create_file) as temporary:
            try:
                yield temporary
                sync(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`, and remove what is under its name when the block ends."""
    with _temporary_beside(path, os.mkdir) as temporary:
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """Return a free name beside `path`. `remove_abandoned` removes what has it and is not held."""
    return path.parent / f".{path.name}.{secrets.token_hex(6)}{_TEMPORARY}"


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and directories in a folder whose process has ended.

    name: only those that were to become the file of this name; None removes all.
    """
    pattern = f".*{_TEMPORARY}" if name is None else f".{escape(name)}.*{_TEMPORARY}"
    for path in folder.glob(pattern):
        with suppress(OSError):  # held by a running process, or gone
            descriptor = _open_to_lock(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file. A reader, or a crash, sees either the old content or the new, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_all(file: BinaryIO, content: bytes) -> None:
    """Write to an unbuffered file, whose writes may take a part. A buffer would fail once more as it is closed."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def write_model(path: Path, model: BaseModel) -> None:
    """Write a record atomically, as indented JSON."""
    write_atomically(path, model.model_dump_json(indent=2).encode() + b"\n")


def check_files(
    root: Path, files: Mapping[str, str], *, what: str, raises: type[StoredDataError], way_out: str
) -> None:
    """Compare the sha256 of files below a folder with those in its contract.

    files: maps a file's path, relative to root, to its sha256. what: the kind of folder, for the message. Raises
    `raises` if a file is missing, lies outside root, is a device, pipe or folder, or has another sha256.
    """
    whole = root.resolve()
    for name, expected in files.items():
        path = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.resolve().is_relative_to(whole):
            raise raises(f"{what} {root}: file {name} does not lie below it; {way_out}", path=path)
        if not path.exists():
            raise raises(f"{what} {root}: file {name} is missing; {way_out}", path=path)
        if not path.is_file():
            raise raises(f"{what} {root}: file {name} is not a plain file; {way_out}", path=path)
        found = sha256_of_file(path)
        if found != expected:
            raise raises(
                f"{what} {root}: file {name} is corrupted: its sha256 is {found[:16]}..., expected {expected[:16]}...; "
                f"{way_out}",
                path=path,
            )


def is_not_utf8(path: str) -> bool:
    """Return whether a path came from bytes that are not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return True
    return False


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, destination: Path) -> None:
    """Give a file another name, by a hard link where the file system has them, else by a copy."""
    try:
        os.link(source, destination)
    except OSError:  # another file system, or the destination is there
        shutil.copyfile(source, destination)


def sync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leads_to(path: Path, descriptor: int) -> bool:
    """Return whether a path leads to an open file or folder, and neither to another one nor to nothing.

    The number of links does not say it on NFS, where a file that is removed while it is open gets a hidden name.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError the name `path` if it names no file, or the temporary file beside `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or _TEMPORARY in os.fsdecode(error.filename):
            error.filename = str(path)
        raise


@contextmanager
def _temporary_beside(path: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """Create and yield a temporary path, and hold it, so that nobody takes it for abandoned."""
    while True:
        temporary = temporary_name(path)
        create(temporary)
        descriptor = _open_to_lock(temporary)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if leads_to(temporary, descriptor):
            break
        os.close(descriptor)  # it was taken for abandoned before it was held
    try:
        yield temporary
    finally:
        os.close(descriptor)


def _open_to_lock(path: Path) -> int:
    """Open a file or a folder. A file is opened for writing: else NFS gives no exclusive lock, see flock(2)."""
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except IsADirectoryError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def _create_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
