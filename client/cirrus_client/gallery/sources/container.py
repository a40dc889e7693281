"""An opened part of a source: images that lie in one local file, each at its place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

from cirrus_client.errors import UnreadableImage
from cirrus_client.files import is_not_utf8
from cirrus_client.gallery.source import ImageFile, Listing, PassedOver
from cirrus_client.gallery.sources.columns import written
from cirrus_client.gallery.sources.suffixes import NOT_UTF8
from cirrus_client.image.limits import MAX_IMAGE_BYTES


class Container:
    """The images of one part. Threads may share it.

    An image's etag is a hash of its bytes and its metadata, so that of a part that was written anew, only images that
    have changed are embedded again.
    """

    def __init__(self, root: str, part: ImageFile, file: BinaryIO) -> None:
        """Start without an image. root: of the source. file: stays open as long as the container is used."""
        self._root = root
        self._part = part
        self._file = file
        self._files: dict[str, ImageFile] = {}
        self._places: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._skipped: list[PassedOver] = []
        self._unread: list[PassedOver] = []

    @property
    def root(self) -> str:
        """See `Source.root`."""
        return self._root

    def list(self) -> Listing:
        """Return every image of the part; there may be none."""
        files = sorted(self._files.values(), key=lambda file: file.path)
        return Listing(tuple(files), tuple(self._skipped), tuple(self._unread))

    def read(self, file: ImageFile) -> bytes:
        """See `Source.read`."""
        return self.read_at(self._places[file.path], file.size)

    def read_at(self, place: int, size: int) -> bytes:
        """Return bytes of the local file, but no more than one above MAX_IMAGE_BYTES. Raises UnreadableImage."""
        wanted = min(size, MAX_IMAGE_BYTES + 1)
        content = os.pread(self._file.fileno(), wanted, place)
        while len(content) < wanted:
            more = os.pread(self._file.fileno(), wanted - len(content), place + len(content))
            if not more:
                name = self._part.path
                raise UnreadableImage(f"{name} has become shorter while it was read; the next run takes it as it is")
            content += more
        return content

    def add(self, name: str, place: int, size: int, content: bytes, metadata: Mapping[str, Any]) -> None:
        """Add an image. Of several with one name, the second is named with `#2`, and so on."""
        if is_not_utf8(name):
            self.pass_over(name, NOT_UTF8)
            return
        path = named = f"{self._part.path}/{name}"
        while path in self._files:
            self._times[named] = self._times.get(named, 1) + 1
            path = f"{named}#{self._times[named]}"
        self._files[path] = ImageFile(path, size, 0, _etag(content, metadata), metadata)
        self._places[path] = place

    def pass_over(self, name: str, reason: str) -> None:
        """Add what is no image. name: in the part."""
        self._skipped.append(PassedOver(f"{self._part.path}/{name}", reason))

    def leave_unread(self, reason: str) -> None:
        """Note that the rest of the part can't be read, unless that was noted already."""
        if not self._unread:
            self._unread.append(PassedOver(self._part.path, reason))


def _etag(content: bytes, metadata: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(content)
    if metadata:
        digest.update(written(metadata))
    return digest.hexdigest()[:32]
