"""Write files and folders atomically, and check files against their sha256."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from cirrus_client.errors import StoredDataError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. If the block succeeds, flush the file to disk and rename it to `path`.

    An OSError in the block that names no file (disk full) is given the name `path`.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`. If the block succeeds, the directory replaces `path`.

    An OSError in the block that names no file (disk full) is given the name `path`.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)
        try:
            yield temporary
            if path.exists():
                previous = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                path.rename(previous / path.name)
                temporary.rename(path)
                shutil.rmtree(previous)
            else:
                temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_directory(path.parent)


def is_foreign(path: Path, mark: str) -> bool:
    """Return whether a path must not be replaced: it is not empty, and no file in it matches the pattern `mark`."""
    return path.exists() and not any(path.glob(mark)) and (not path.is_dir() or any(path.iterdir()))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file. A reader, or a crash, sees either the old content or the new, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_model(path: Path, model: BaseModel) -> None:
    """Write a record atomically, as indented JSON."""
    write_atomically(path, model.model_dump_json(indent=2).encode() + b"\n")


def user_cache() -> Path:
    """Return the user's cache folder, whose content may be deleted at any time. The folder may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cirrus"


def check_files(
    root: Path, files: Mapping[str, str], *, what: str, raises: type[StoredDataError], way_out: str
) -> None:
    """Compare the sha256 of files below a folder with those in its contract.

    files: maps a file's path, relative to root, to its sha256. what: the kind of folder, for the message. Raises
    `raises` if a file is missing, lies outside root, or has another sha256.
    """
    for name, expected in files.items():
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise raises(f"{what} {root}: file {name} does not lie below it; {way_out}", path=path)
        if not path.is_file():
            raise raises(f"{what} {root}: file {name} is missing; {way_out}", path=path)
        found = sha256_of_file(path)
        if found != expected:
            raise raises(
                f"{what} {root}: file {name} is corrupted: its sha256 is {found[:16]}..., expected {expected[:16]}...; "
                f"{way_out}",
                path=path,
            )


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an OSError the name `path` if it names no file, or the temporary file beside `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).name.startswith(f".{path.name}."):
            error.filename = str(path)
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
