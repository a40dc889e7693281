"""Files that are either whole or absent."""

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
    """Give a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    An OSError of the block that names no file, like that of a full disk, names `path`.
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
    """Give an empty directory beside `path`; when the block ends well, it takes the place of `path`.

    An OSError of the block that names no file, like that of a full disk, names `path`.
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
    """Return whether a path holds something that must not be replaced: not empty, and without a file like `mark`."""
    return path.exists() and not any(path.glob(mark)) and (not path.is_dir() or any(path.iterdir()))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees either the old content or the new."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_model(path: Path, model: BaseModel) -> None:
    """Write a contract, manifest or report as JSON that people can read, atomically."""
    write_atomically(path, model.model_dump_json(indent=2).encode() + b"\n")


def user_cache() -> Path:
    """Return the folder for what is only kept to save time; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cirrus"


def check_files(
    root: Path, files: Mapping[str, str], *, what: str, raises: type[StoredDataError], way_out: str
) -> None:
    """Compare the sha256 of files below a folder with what its contract says.

    files: from a file's name, relative to root, to its sha256. what: the kind of folder, for the message of `raises`,
    which is raised if a file is missing, does not lie below root, or has another sha256.
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
    """Have an OSError name a path, where it names no file or the temporary one beside it."""
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
