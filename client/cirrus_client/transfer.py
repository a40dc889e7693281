"""Copy a folder that Cirrus wrote to a store that fsspec knows, and back: s3, gs, http, a Hugging Face repository.

The store has the files under their own names, and a manifest with the sha256 of each, which is written last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

from pydantic import Field
from tqdm import tqdm

from cirrus_client.bundle import CONTRACT, Bundle
from cirrus_client.errors import GalleryError, TransferError
from cirrus_client.files import leads_to, link_or_copy, naming, sha256_of_file, write_all
from cirrus_client.gallery.sources.store import filesystem, patiently
from cirrus_client.index.manifest import MANIFEST as INDEX_MANIFEST
from cirrus_client.index.saved import check_index
from cirrus_client.names import Writer
from cirrus_client.outputs import MARK, OutputMark, check_replaceable, of_one_version, only_writer, replaced_directory
from cirrus_client.records import Record, RelativePath, parse_record, read_record
from cirrus_client.resuming import resumable

MANIFEST = "cirrus-files.json"
_UNFINISHED = "cirrus-files.part.json"
_CHUNK_BYTES = 1 << 22
T = TypeVar("T")


class SentFile(Record):
    """A file of a folder that was pushed."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


_BEING_SENT = SentFile(sha256="0" * 64, size=0)
"""In the place of a file of which a push that was interrupted may have sent a part."""


class Manifest(Record):
    """The contents of `cirrus-files.json`. writer: the command that wrote the folder."""

    format: Literal[1] = 1
    writer: Writer
    files: dict[RelativePath, SentFile]

    def __str__(self) -> str:
        return f"{len(self.files)} files, {sum(file.size for file in self.files.values()) / 1e6:,.1f} MB"


def push(folder: Path, url: str, *, show_progress: bool = False) -> Manifest:
    """Copy a bundle, an index, a suggester or a model repository to a store. Files that did not change are not sent.

    url: where its files shall be, like `s3://models/union` or `hf://name/repository`. Raises BundleError for a bundle
    and SearchIndexError for an index that is not whole, TransferError for a folder that Cirrus did not write, that
    lacks a file or is replaced meanwhile, or a store that does not take it, and MissingPackage if the scheme's package
    is missing.
    """
    manifest, descriptor = of_one_version(folder, lambda: (_described(folder), os.open(folder, os.O_RDONLY)))
    try:
        _send(manifest, folder, url, show_progress=show_progress, is_still=partial(leads_to, folder, descriptor))
    finally:
        os.close(descriptor)
    return manifest


def _send(manifest: Manifest, folder: Path, url: str, *, show_progress: bool, is_still: Callable[[], bool]) -> None:
    """Copy files to a store, and then their manifest. is_still: returns whether the folder has them still."""
    store, root = _store(url)
    whole, unfinished = _earlier(store, root, url)
    sent = {} if unfinished is None else dict(unfinished.files)
    there = ({} if whole is None else whole.files) | sent
    with resumable() as kept:
        for name, file in _shown(manifest.files, show_progress, "pushing"):
            target = f"{root}/{name}"
            if there.get(name) != file or not _asked(url, partial(_has_size, store, target, file.size)):
                noted = Manifest(writer=manifest.writer, files=sent | {name: _BEING_SENT})
                _asked(url, partial(_write, store, f"{root}/{_UNFINISHED}", noted))
                _asked(url, partial(_put, store, folder / name, target))
                sent[name] = file
                kept()
        if not is_still():
            raise TransferError(f"{folder} was replaced while it was pushed: push it again", path=folder, url=url)
        _asked(url, partial(_write, store, f"{root}/{MANIFEST}", manifest))
        if sent:
            _asked(url, partial(_remove, store, f"{root}/{_UNFINISHED}"))


def pull(url: str, out: Path, *, show_progress: bool = False) -> Manifest:
    """Copy a folder from where `push` put it. Files that `out` has already are not fetched again.

    The folder replaces `out` in one step when every file has its sha256. After an interruption, what was fetched is
    used. Raises TransferError if nothing was pushed there or a file differs, OutputError if `out` is something else or
    another process pulls into it, BundleError or SearchIndexError if a bundle or an index is not whole, and
    MissingPackage as `push` does.
    """
    store, root = _store(url)
    manifest = _manifest(store, root, url, MANIFEST)
    if manifest is None:
        raise TransferError(f"{url} has no {MANIFEST}: nothing was pushed there; see `cirrus push`", url=url)
    check_replaceable(out, manifest.writer)
    fetched = out.parent / f".{out.name}.pulled"
    out.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(out.parent / f".{out.name}.pulled.lock", out), resumable() as kept:
        fetched.mkdir(exist_ok=True)
        for name, file in _shown(manifest.files, show_progress, "pulling"):
            copy = fetched / file.sha256
            if not _is(copy, file) and not _reused(out / name, copy, file):
                _fetch(store, f"{root}/{name}", copy, file, url=url, name=name)
            kept()
        with replaced_directory(out, manifest.writer) as folder:
            for name, file in manifest.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(fetched / file.sha256, folder / name)
            _check_whole(folder)
        shutil.rmtree(fetched)
    return manifest


def _fetch(store: Any, source: str, copy: Path, file: SentFile, *, url: str, name: str) -> None:
    """Copy a file of a store. Raises TransferError if it is another one than was pushed."""
    _asked(url, partial(_get, store, source, copy))
    if not _is(copy, file):
        copy.unlink()
        raise TransferError(
            f"{url}: {name} is not the file of {MANIFEST}; if it is being pushed now, pull again later, else remove it "
            "there and push again",
            url=url,
        )


def _described(folder: Path) -> Manifest:
    """Return the files of a folder that a command of Cirrus wrote, and that is whole."""
    _check_whole(folder)
    mark = read_record(
        folder / MARK,
        OutputMark,
        raises=TransferError,
        missing=f"{folder} is no bundle, index, suggester or model repository as Cirrus wrote it: it has no {MARK}",
        way_out="give a folder that Cirrus wrote",
    )
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path != folder / MARK
    )
    if missing := sorted(set(mark.files).difference(names)):
        raise TransferError(f"{folder} lacks {missing[0]}, which `cirrus {mark.writer}` wrote: make it again")
    files = {
        name: SentFile(sha256=sha256_of_file(folder / name), size=(folder / name).stat().st_size) for name in names
    }
    return Manifest(writer=mark.writer, files=files)


def _check_whole(folder: Path) -> None:
    """Raise BundleError or SearchIndexError for a bundle or an index whose files are not those of its contract."""
    if (folder / CONTRACT).exists():
        Bundle.open(folder)
    if (folder / INDEX_MANIFEST).exists():
        check_index(folder)


def _shown(files: Mapping[str, SentFile], show_progress: bool, what: str) -> Iterator[tuple[str, SentFile]]:
    """Yield files and their names, with a bar of the bytes that are done."""
    total = sum(file.size for file in files.values())
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=not show_progress) as bar:
        for name, file in files.items():
            yield name, file
            bar.update(file.size)


def _manifest(store: Any, root: str, url: str, name: str) -> Manifest | None:
    content = _content(store, root, url, name)
    return None if content is None else _parsed(content, url, name)


def _earlier(store: Any, root: str, url: str) -> tuple[Manifest | None, Manifest | None]:
    """Return the manifests of the last whole and the last interrupted push.

    If one can't be read, neither is returned, so that every file is sent again.
    """
    named = [(_content(store, root, url, name), name) for name in (MANIFEST, _UNFINISHED)]
    try:
        whole, unfinished = (None if content is None else _parsed(content, url, name) for content, name in named)
    except TransferError:
        return None, None
    return whole, unfinished


def _content(store: Any, root: str, url: str, name: str) -> bytes | None:
    def read() -> bytes | None:
        try:
            return bytes(store.cat_file(f"{root}/{name}"))
        except FileNotFoundError:
            return None

    return _asked(url, read)


def _parsed(content: bytes, url: str, name: str) -> Manifest:
    return parse_record(content, Manifest, source=f"{url}/{name}", raises=TransferError, way_out="push it again")


def _write(store: Any, target: str, manifest: Manifest) -> None:
    _make_folder_of(store, target)
    store.pipe_file(target, manifest.model_dump_json(indent=2).encode())


def _store(url: str) -> tuple[Any, str]:
    try:
        store, root = filesystem(url)
    except GalleryError as error:
        raise TransferError(f"{url} is no store: {error}", url=url) from None
    return store, root.rstrip("/")


def _asked(url: str, job: Callable[[], T]) -> T:
    """Return what a store answers, tried three times. Raises TransferError with the store's reason."""
    try:
        return patiently(job)
    except MemoryError:
        raise
    except Exception as error:  # what fsspec's stores raise is theirs to choose
        raise TransferError(f"{url}: {type(error).__name__}: {error}", url=url) from None


def _put(store: Any, source: Path, target: str) -> None:
    _make_folder_of(store, target)
    store.put_file(str(source), target)


def _remove(store: Any, target: str) -> None:
    with suppress(FileNotFoundError):  # removed, and the answer was lost
        store.rm_file(target)


def _make_folder_of(store: Any, target: str) -> None:
    """Make the folder of a file to write where a store has folders, like `file://`."""
    store.makedirs(target.rpartition("/")[0], exist_ok=True)


def _has_size(store: Any, target: str, size: int) -> bool:
    try:
        return bool(store.info(target)["size"] == size)
    except FileNotFoundError:
        return False


def _get(store: Any, source: str, target: Path) -> None:
    with store.open(source, "rb") as remote, target.open("wb", buffering=0) as local:
        while chunk := remote.read(_CHUNK_BYTES):
            with naming(target):
                write_all(cast(BinaryIO, local), chunk)


def _is(path: Path, file: SentFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of_file(path) == file.sha256


def _reused(path: Path, target: Path, file: SentFile) -> bool:
    """Link or copy a file that is there already, and return whether it is the right one."""
    if not _is(path, file):
        return False
    link_or_copy(path, target)
    return True
