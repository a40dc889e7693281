"""Files by their location: a path of this machine, or the URL of a store that fsspec knows.

Reads of a store are tried again, since connections break. What the store says for good (missing, not allowed) is not.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from glob import glob
from itertools import islice, product
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from cirrus_client.errors import GalleryError, MissingPackage, UnreadableImage
from cirrus_client.extras import need
from cirrus_client.files import write_all
from cirrus_client.gallery.source import ImageFile
from cirrus_client.image.limits import MAX_IMAGE_BYTES

T = TypeVar("T")
_LOOKERS = 32
"""Threads that ask a store about files: they wait for the network."""

_LOOKED_AT_ONCE = 2048
_PAUSES_S = (0.2, 1.0)
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(MissingPackage, GalleryError, UnreadableImage),
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "checksum", "Digest", "generation", "blob_id", "sha")
_TIMES = (
    *("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "modify", "modificationTime"),
    "created",
)
_LINK = re.compile(r"(::)(?=[A-Za-z][A-Za-z0-9+.-]*://|/)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_CHUNK_BYTES = 2**20
_REFUSALS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}
"""What a web server's status means for good. Any other may be another one in a moment."""


def scheme_of(location: str) -> str | None:
    """Return the scheme of a URL, in lower case, or None for a path."""
    match = _SCHEME.match(location)
    return match[1].lower() if match else None


def joined(root: str, path: str) -> str:
    """Return the location of a path below a root. A path that is absolute or a URL is a location itself."""
    if scheme_of(path) or path.startswith("/"):
        return path
    return url_below(root, path) if scheme_of(root) else str(Path(root) / path)


def url_below(url: str, path: str) -> str:
    """Return the URL of a path below a URL. Of a chain, like `zip://a::file:///x.zip`, the first link has the path."""
    first, rest = unchained(url)
    return f"{first if first.endswith('://') else first.rstrip('/') + '/'}{path}{rest}"


def unchained(url: str) -> tuple[str, str]:
    """Return the first link of a chain of URLs, like `zip://a::file:///x.zip`, and the rest with its `::`."""
    first, *rest = _LINK.split(url, maxsplit=1)
    return first, "".join(rest)


def split(pattern: str) -> tuple[str, str]:
    """Return the folder or URL prefix in which all files of a pattern lie, absolute, and the rest of the pattern.

    A path at which there is a file is no pattern, whatever its letters.
    """
    if _is_file(pattern):
        return str(Path(pattern).parent.resolve()), Path(pattern).name
    first, chain = unchained(pattern) if scheme_of(pattern) else (pattern, "")
    plain = re.split(r"[{*?\[]", first, maxsplit=1)[0]
    folder, slash, _ = plain.rpartition("/")
    rest = first[len(folder + slash) :]
    if not scheme_of(pattern):
        return str(Path(folder + slash or ".").resolve()), rest
    return (f"{folder}/" if folder.endswith(":/") else folder) + chain, rest


def find(pattern: str) -> tuple[ImageFile, ...]:
    """Return the files that a pattern names, sorted by path, which is relative to `split(pattern)`.

    Braces name files one by one, like `{00000..00999}.tar`; `*`, `?` and `[...]` take what is there. Raises
    GalleryError if a named file is missing or nothing is there.
    """
    root, rest = split(pattern)
    forget_listings([root])
    try:
        paths = {rest} if _is_file(pattern) else {path for name in expanded(rest) for path in _globbed(root, name)}
    except OSError as error:
        raise GalleryError(f"images {pattern}: {error.strerror or error}") from None
    if not paths:
        raise GalleryError(f"images {pattern}: there is no such file")

    def looked_up(path: str) -> ImageFile:
        try:
            return look_up(joined(root, path), path)
        except OSError as error:
            raise GalleryError(f"images {joined(root, path)}: {_reason(error)}") from None

    return tuple(in_threads(looked_up, sorted(paths)))


def in_threads(look: Callable[..., T], *columns: Iterable[Any]) -> Iterator[T]:
    """Yield what a function returns for the values of columns, in their order, as `map` does.

    Threads call it. Only some entries wait for them at a time, each of which takes a kilobyte.
    """
    entries = zip(*columns, strict=True)
    with impatient_threads(_LOOKERS, "look") as threads:
        while some := list(islice(entries, _LOOKED_AT_ONCE)):
            yield from threads.map(lambda entry: look(*entry), some)


@contextmanager
def impatient_threads(number: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Yield threads. The end of the block waits for them, but an error in it does not: a network may take minutes."""
    threads = ThreadPoolExecutor(number, thread_name_prefix=name)
    try:
        yield threads
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    threads.shutdown()


def forget_listings(locations: Iterable[str]) -> None:
    """Have the stores of locations asked anew: in one process, fsspec answers from what it has listed before.

    A location that no store has is left to whoever asks for it.
    """
    for scheme, location in {scheme_of(location): location for location in locations}.items():
        if scheme is not None:
            with suppress(GalleryError):
                filesystem(location)[0].invalidate_cache()


def expanded(pattern: str) -> list[str]:
    """Return the names that braces stand for: `{000..002}` is 000, 001 and 002, `{a,b}` is a and b."""
    pieces = _BRACES.split(pattern)
    choices = [[piece] if place % 2 == 0 else _choices(piece) for place, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def look_up(location: str, path: str, metadata: Mapping[str, Any] | None = None) -> ImageFile:
    """Return the size and the state of a file. path: how the gallery names it. Raises OSError if it is not there."""
    metadata = metadata or {}
    if not scheme_of(location):
        status = os.stat(location)
        return ImageFile(path, status.st_size, status.st_mtime_ns, metadata=metadata)
    store, inner = filesystem(location)
    return described(patiently(lambda: store.info(inner)), path, metadata)


def described(info: Mapping[str, Any], path: str, metadata: Mapping[str, Any] | None = None) -> ImageFile:
    """Return the file of an entry of fsspec's listings. Its etag is the store's, or the time of the last change."""
    etag = next((str(info[key]).strip('"') for key in (*_ETAGS, *_TIMES) if info.get(key)), "")
    size = info.get("size")
    return ImageFile(path, -1 if size is None else int(size), 0, etag, metadata or {})


def read_remote(url: str, file: ImageFile) -> bytes:
    """Return the bytes of an image at a URL, but no more than one above MAX_IMAGE_BYTES, which decoding refuses.

    A changed image whose size is the same is noticed by the next run: the gallery keeps the etag of the listing. Raises
    UnreadableImage if the store does not give as many bytes as it listed.
    """
    return read_stored(*filesystem(url), file, url=url)


def read_stored(store: Any, inner: str, file: ImageFile, *, url: str) -> bytes:
    """Return what `read_remote` does of a path of a file system. url: names the image, for messages."""
    most = MAX_IMAGE_BYTES + 1
    part = {} if 0 <= file.size < most else {"start": 0, "end": most}
    try:
        content = bytes(patiently(lambda: store.cat_file(inner, **part)))[:most]
    except OSError as error:
        raise unreadable(url, error) from None
    if file.size >= 0 and len(content) != min(file.size, most):
        raise UnreadableImage(
            f"image {url} has {len(content):,} bytes and was listed with {file.size:,}; the next run takes it as it is",
            path=url,
        )
    return content


@contextmanager
def fetched(location: str) -> Iterator[BinaryIO]:
    """Open a file to read at any place. One from a store is copied to a temporary file, which no crash leaves behind.

    Raises UnreadableImage if it can't be read.
    """
    if not scheme_of(location):
        try:
            file: BinaryIO = open(location, "rb")  # noqa: SIM115
        except OSError as error:
            raise unreadable(location, error) from None
        with file:
            yield file
        return
    with scratch_file() as copy:
        try:
            patiently(lambda: _copy(location, copy))
        except OSError as error:
            raise unreadable(location, error) from None
        copy.seek(0)
        yield copy


@contextmanager
def scratch_file() -> Iterator[BinaryIO]:
    """Open a temporary file that no crash leaves behind. `write_scratch` writes to it."""
    with tempfile.TemporaryFile(buffering=0) as file:
        yield cast(BinaryIO, file)


def write_scratch(file: BinaryIO, content: bytes) -> None:
    """Write to a `scratch_file`. Raises UnreadableImage if its folder has no room: what is read is not at fault."""
    try:
        write_all(file, content)
    except OSError as error:
        folder = tempfile.gettempdir()
        reason = f"no temporary file of it can be written in {folder}: {error.strerror}; name another folder in TMPDIR"
        raise UnreadableImage(reason, path=folder, errno=error.errno) from None


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path there. Its credentials and options are fsspec's settings.

    A scheme may be in capitals, which fsspec does not know.
    Raises GalleryError for a scheme that fsspec does not know, MissingPackage if the scheme's package is missing, and
    UnreadableImage if an archive that the URL names can't be opened.
    """
    fsspec = need("fsspec", f"reading {url}")
    scheme = scheme_of(url) or ""
    try:
        store, inner = fsspec.core.url_to_fs(scheme + url[len(scheme) :])
    except ImportError as error:
        raise MissingPackage(
            f"reading {url} needs a package of fsspec ({error}); 'cirrus-cir[sources]' has what s3 needs",
            package="fsspec",
            requirement="cirrus-cir[sources]",
        ) from None
    except ValueError as error:
        raise GalleryError(f"images {url}: {error}") from None
    except Exception as error:  # what opens an archive raises what it likes
        failed = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
        raise unreadable(url, failed) from None
    return store, str(inner)


def patiently(job: Callable[[], T]) -> T:
    """Return what a job at a store returns; where it fails for now, try it twice more.

    Raises OSError, whatever the store raised, but MemoryError and Cirrus's own errors as they are.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return job()
        except MemoryError:
            raise
        except Exception as raised:  # what fsspec's stores raise is theirs to choose
            error = _unmasked(raised)
            if isinstance(error, _FINAL):
                raise error from None
            if pause_s is None:
                raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from None
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def unreadable(location: str, error: OSError) -> UnreadableImage:
    """Return the error of a location that can't be read now."""
    return UnreadableImage(f"can't read {location}: {_reason(error)}", path=location, errno=error.errno)


def _reason(error: OSError) -> str:
    """Return what is wrong, in words. A store's error of a missing file may have its name alone."""
    if isinstance(error, FileNotFoundError) and not error.strerror:
        return os.strerror(errno.ENOENT)
    return error.strerror or str(error) or type(error).__name__


def _unmasked(error: Exception) -> Exception:
    """Return what went wrong: of whatever fails on the web, fsspec says that there is no such file."""
    cause, aiohttp = error.__cause__, sys.modules.get("aiohttp")
    if not isinstance(error, FileNotFoundError) or aiohttp is None:
        return error
    if isinstance(cause, aiohttp.ClientResponseError) and cause.status in _REFUSALS:
        return OSError(_REFUSALS[cause.status], f"the server answers {cause.status} {cause.message}".strip())
    return cause if isinstance(cause, (aiohttp.ClientError, TimeoutError)) else error


def _copy(url: str, to: BinaryIO) -> None:
    store, inner = filesystem(url)
    to.seek(0)
    to.truncate()
    with store.open(inner, "rb", block_size=8 * _CHUNK_BYTES, cache_type="readahead") as remote:
        while chunk := remote.read(_CHUNK_BYTES):
            write_scratch(to, chunk)
    expected = store.info(inner).get("size")
    if expected is not None and to.tell() != expected:
        raise OSError(f"{to.tell():,} of {expected:,} bytes came")


def _is_file(pattern: str) -> bool:
    return not scheme_of(pattern) and Path(pattern).is_file()


def _globbed(root: str, name: str) -> list[str]:
    """Return the files that a pattern names. In an address of the web, `?` begins a query, whose letters are none."""
    if not re.search(r"[*?\[]", name.partition("?")[0] if scheme_of(root) in ("http", "https") else name):
        return [name]
    if not scheme_of(root):
        return glob(name, root_dir=root, recursive=True)
    store, inner = filesystem(root)
    found = patiently(lambda: store.glob(f"{inner.rstrip('/')}/{name}"))
    return [path.removeprefix(inner.rstrip("/")).removeprefix("/") for path in found]


def _choices(inner: str) -> list[str]:
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        return inner.split(",")
    first, last = numbers[1], numbers[2]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
