"""The folders that commands write: whose they are, who may write them now, and how they are replaced.

A folder that is replaced as a whole (bundle, index, model repository) has a mark that names its writer and every file
that the writer put there. Only a folder that holds nothing else is replaced. Old or new content is there at every
moment, also if the process is killed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from cirrus_client import __version__
from cirrus_client.errors import CirrusError, OutputError, StoredDataError
from cirrus_client.files import (
    NOT_UTF8,
    is_not_utf8,
    leads_to,
    naming,
    remove_abandoned,
    sync,
    temporary_directory,
    temporary_name,
    write_model,
)
from cirrus_client.names import Writer
from cirrus_client.records import Record

MARK = ".cirrus-output.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_IGNORED = "__pycache__"
_HOLDER_KNOWN_AFTER_S = 1.0
_MOST_REOPENINGS = 100
T = TypeVar("T")


class OutputMark(Record):
    """The mark of a folder that a command wrote. files: relative paths, without those below folders of other marks."""

    writer: Writer
    version: str
    files: tuple[str, ...]


@contextmanager
def replaced_directory(path: Path, writer: Writer) -> Iterator[Path]:
    """Yield an empty directory beside `path`. If the block succeeds, it is marked and replaces `path` in one step.

    Raises OutputError, before the block, if `path` holds what `writer` did not write, if another process is writing it,
    or if its name is not UTF-8. An OSError in the block that names no file (disk full) is given the name `path`.
    """
    path = path.resolve()
    if is_not_utf8(str(path)):
        raise OutputError(f"{path}: {NOT_UTF8}", path=path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(path.parent / f".{path.name}.lock", path):
            _restore_previous(path)
            check_replaceable(path, writer)
            remove_abandoned(path.parent, path.name)
            with temporary_directory(path) as temporary:
                yield temporary
                _mark(temporary, writer)
                _swap(temporary, path)
                sync(path.parent)


@contextmanager
def only_writer(lock: Path, output: Path) -> Iterator[None]:
    """Hold the lock file of an output, so that no other process or thread writes it. The lock ends with the process.

    Raises OutputError, which names the process, if another one holds it.
    """
    descriptor = _locked(lock, output)
    try:
        with naming(output):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def check_replaceable(path: Path, writer: Writer) -> None:
    """Raise OutputError unless `path` is free, an empty folder, or a folder in which everything is the writer's."""
    path = path.resolve()
    if Path.cwd().is_relative_to(path):
        raise OutputError(f"{path}: is the current folder or contains it; name a folder below it", path=path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    mark = _read_mark(path)
    if mark is None or mark.writer is not writer:
        by = "" if mark is None else f" (cirrus {mark.writer} wrote it)"
        raise OutputError(
            f"{path}: exists and was not written by `cirrus {writer}`{by}; name another path or remove it",
            path=path,
        )
    strangers = sorted(_files_of(path) - set(mark.files))
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise OutputError(
            f"{path}: `cirrus {writer}` would replace it, but did not write {strangers[0]}{more}; move that "
            "away or name another path",
            path=path,
        )


def of_one_version(root: Path, read: Callable[[], T]) -> T:
    """Return what `read` returns, from one version of a folder that may be replaced meanwhile. `read` may be repeated.

    Raises what `read` raises, if the folder was not replaced meanwhile.
    """
    for _ in range(_MOST_REOPENINGS):
        try:
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return read()
        try:  # while the descriptor is open, no other folder gets this one's inode number
            result: T | CirrusError | OSError
            try:
                result = read()
            except (CirrusError, OSError) as error:
                result = error
            if leads_to(root, descriptor):
                if isinstance(result, (CirrusError, OSError)):
                    raise result
                return result
        finally:
            os.close(descriptor)
    raise StoredDataError(f"{root}: is replaced again and again while it is read; try again later", path=root)


def _locked(lock: Path, output: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise OutputError(
                f"{output}: {holder or 'another process'} is writing it; wait for it, or name another folder",
                path=output,
                holder=holder,
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.ESTALE:
                continue  # another machine has removed it on NFS
            raise
        if leads_to(lock, descriptor):
            return descriptor
        os.close(descriptor)  # its last holder has removed it


def _holder(descriptor: int) -> str | None:
    """Return the process that holds a lock. A process that has just taken it names itself a moment later."""
    end = time.monotonic() + _HOLDER_KNOWN_AFTER_S
    while True:
        if named := os.pread(descriptor, 200, 0).decode(errors="replace"):
            return named
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


def _mark(root: Path, writer: Writer) -> None:
    files = _files_of(root)
    for name in files:
        sync(root / name)
    write_model(root / MARK, OutputMark(writer=writer, version=__version__, files=tuple(sorted(files))))


def _read_mark(root: Path) -> OutputMark | None:
    try:
        return OutputMark.model_validate_json((root / MARK).read_bytes())
    except (OSError, ValidationError):
        return None


def _files_of(root: Path) -> set[str]:
    """Return everything in a folder but directories, without its mark and what nested marks account for."""
    found: set[str] = set()
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        nested = None if here == root else _read_mark(here)
        if nested is not None:
            strangers = _files_of(here) - set(nested.files)
            found |= {str((here / name).relative_to(root)) for name in strangers}
            folders.clear()
            continue
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name != _IGNORED and name not in links]
        found |= {str((here / name).relative_to(root)) for name in (*names, *links)}
    return found - {MARK}


def _swap(new: Path, path: Path) -> None:
    """Give `path` the content of `new`. If `path` exists, `new` has its old content afterwards."""
    if not path.exists():
        new.rename(path)
        return
    try:
        _exchange(new, path)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        previous = _previous(path)
        path.rename(previous)
        new.rename(path)
        previous.rename(new)


def _exchange(first: Path, second: Path) -> None:
    """Exchange the names of two folders in one step, see renameat2(2). Not every file system can."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def _previous(path: Path) -> Path:
    return path.parent / f".{path.name}.previous"


def _restore_previous(path: Path) -> None:
    """Finish or undo a replacement that was killed on a file system that can't exchange two names."""
    previous = _previous(path)
    if previous.exists() and not path.exists():
        previous.rename(path)
    elif previous.exists():
        previous.rename(temporary_name(path))  # on NFS it can't be removed while a file of it is open
