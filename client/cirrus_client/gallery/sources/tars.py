"""Tars in webdataset's format: the files of a sample have one name up to its first dot, and follow each other.

https://github.com/webdataset/webdataset: of `000/17.jpg`, `000/17.json` and `000/17.txt`, the key is `000/17`.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from cirrus_client.errors import UnreadableImage
from cirrus_client.gallery.source import ImageFile, Listing, Source
from cirrus_client.gallery.sources.columns import Columns
from cirrus_client.gallery.sources.container import Container
from cirrus_client.gallery.sources.store import fetched, find, joined, split
from cirrus_client.gallery.sources.suffixes import has_image_suffix, no_image
from cirrus_client.image.decode import SIGNATURE_BYTES, begins_as_image

_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
"""The first bytes of compressed files."""
_MAX_TEXT_BYTES = 2**20
_LOOKED_AT_BYTES = 2**20
_TEXTS = frozenset({"json", "txt", "text", "caption", "cls"})


class TarSource:
    """Tars that a pattern names, like `data/{00000..00999}.tar`. A tar is a part; its images are named `TAR/MEMBER`.

    Columns of an image: `key`, the entries of its sample's `.json` file, and the content of its `.txt`, `.text`,
    `.caption` and `.cls` files.
    """

    def __init__(self, pattern: str, columns: Columns | None = None) -> None:
        """Name the tars. Nothing is read yet. Raises GalleryError if columns are named, which tars do not have."""
        (columns or Columns()).refuse(pattern)
        self._pattern = pattern

    @property
    def root(self) -> str:
        """The folder, or the prefix of the URL, in which all the tars are."""
        return split(self._pattern)[0]

    def parts(self) -> Listing:
        """See `PartedSource.parts`."""
        return Listing(find(self._pattern))

    @contextmanager
    def open(self, part: ImageFile) -> Iterator[Source]:
        """See `PartedSource.open`. A remote tar is copied to a temporary file."""
        with fetched(joined(self.root, part.path)) as file:
            container = Container(self.root, part, file)
            _fill(container, file)
            yield container


def _fill(container: Container, file: BinaryIO) -> None:
    images: list[tuple[tarfile.TarInfo, str]] = []
    samples: dict[str, dict[str, Any]] = {}
    count = 0
    start = container.read_at(0, min(max(map(len, _COMPRESSED)), _size(file)))
    method = next((name for first, name in _COMPRESSED.items() if start.startswith(first)), None)
    if method is not None:
        container.leave_unread(
            f"it is compressed with {method}; decompress it, so that its images can be read one by one"
        )
        return
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                count += 1
                if not member.isdir():
                    _look_at(container, member, images, samples)
            if any(container.read_at(tar.offset, min(tarfile.BLOCKSIZE, _size(file) - tar.offset))):
                raise tarfile.ReadError("what follows is no header")  # tarfile takes it for the end
            if _goes_on(container, tar.offset, _size(file)):
                container.leave_unread(
                    f"it ends after {count:,} members, and what follows is not read, like a tar that was added by "
                    "`cat`; make one tar of them"
                )
    except (tarfile.TarError, UnreadableImage) as error:
        container.leave_unread(f"it is broken after {count:,} members: {error}")
    for member, key in images:
        place, size = member.offset_data, member.size
        try:
            content = container.read_at(place, size)
        except UnreadableImage as error:
            container.leave_unread(str(error))
            continue
        container.add(member.name, place, size, content, samples.get(key, {}) | {"key": key})


def _goes_on(container: Container, end: int, size: int) -> bool:
    """Return whether more than zeros follow the end of a tar. end: the place of its last blocks. size: of the file."""
    contents = (container.read_at(at, min(_LOOKED_AT_BYTES, size - at)) for at in range(end, size, _LOOKED_AT_BYTES))
    return any(content.count(0) < len(content) for content in contents)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _look_at(
    container: Container,
    member: tarfile.TarInfo,
    images: list[tuple[tarfile.TarInfo, str]],
    samples: dict[str, dict[str, Any]],
) -> None:
    match = _KEY.fullmatch(member.name)
    key, kind = (match[1], match[2].lower()) if match else (member.name, "")
    if not member.isreg() or member.issparse():
        container.pass_over(member.name, "it is a link, a device or a sparse file")
    elif kind in _TEXTS and member.size <= _MAX_TEXT_BYTES:
        text = container.read_at(member.offset_data, member.size).decode(errors="replace")
        samples.setdefault(key, {}).update(_columns(kind, text))
    elif has_image_suffix(member.name) or begins_as_image(
        container.read_at(member.offset_data, min(member.size, SIGNATURE_BYTES))
    ):
        images.append((member, key))
    else:
        container.pass_over(member.name, no_image(member.name))


def _columns(kind: str, text: str) -> dict[str, Any]:
    if kind == "cls":
        number = text.strip()
        return {kind: int(number) if re.fullmatch(r"-?\d{1,18}", number) else number}
    if kind != "json":
        return {kind: text}
    try:
        entries = json.loads(text.removeprefix("\ufeff"))
        if "\\ud" in text.lower():  # half of a surrogate pair is no character
            entries = json.loads(json.dumps(entries, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return {kind: text}
    return entries if isinstance(entries, dict) else {kind: text}
