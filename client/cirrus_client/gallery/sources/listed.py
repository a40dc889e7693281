"""Images that a list names: the lines of a text file, or a column of a table. Paths and URLs may be mixed."""

from __future__ import annotations

import hashlib
import os
import stat
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cirrus_client.errors import GalleryError, UnreadableImage
from cirrus_client.files import is_not_utf8
from cirrus_client.gallery.source import ImageFile, Listing, PassedOver
from cirrus_client.gallery.sources.columns import Columns, written
from cirrus_client.gallery.sources.folder import nothing_found, read_listed
from cirrus_client.gallery.sources.remote import sorted_out
from cirrus_client.gallery.sources.store import (
    fetched,
    forget_listings,
    in_threads,
    joined,
    look_up,
    read_remote,
    scheme_of,
    split,
    unreadable,
)
from cirrus_client.gallery.sources.suffixes import NOT_UTF8

Entry = tuple[str, Mapping[str, Any]]
"""A path or URL, and the columns that come with the image."""


class ListedSource:
    """The images that a list names, whatever their suffixes. Threads may share it.

    A path that is not absolute is relative to the root, which may be a URL. A path that is named twice counts once. An
    image has changed if its file has or the columns that come with it.
    """

    def __init__(self, root: str, entries: Callable[[], Iterable[Entry]], *, name: str) -> None:
        """Name the list. entries: reads it. name: the list, for messages."""
        self._root = root
        self._entries = entries
        self._name = name

    @property
    def root(self) -> str:
        """The folder, or the prefix of the URL, in which the list is."""
        return self._root

    def list(self) -> Listing:
        """See `Source.list`. Also raises UnreadableImage if the list can't be read."""
        entries: dict[str, Mapping[str, Any]] = {}
        twice: list[ImageFile | PassedOver | UnreadableImage] = []
        for path, metadata in self._entries():
            if path in entries:
                twice.append(PassedOver(path, f"{self._name} names it twice; it counts once"))
            entries.setdefault(path, metadata)
        forget_listings(joined(self._root, path) for path in entries)
        listing = sorted_out([*in_threads(self._looked_at, entries, entries.values()), *twice])
        if not listing.files:
            raise GalleryError(nothing_found(self._name, listing.skipped, listing.unread))
        return listing

    def read(self, file: ImageFile) -> bytes:
        """See `Source.read`."""
        location = joined(self._root, file.path)
        return read_remote(location, file) if scheme_of(location) else read_listed(Path(location), file)

    def _looked_at(self, path: str, metadata: Mapping[str, Any]) -> ImageFile | PassedOver | UnreadableImage:
        location = joined(self._root, path)
        if is_not_utf8(path):
            return PassedOver(path, NOT_UTF8)
        if "\0" in path:
            return PassedOver(path, f"it has a NUL, as no name has; {self._name} must be UTF-8")
        try:
            file = look_up(location, path, metadata)
            if not scheme_of(location) and not stat.S_ISREG(os.stat(location).st_mode):
                return PassedOver(path, "it is not a regular file")
        except OSError as error:
            return UnreadableImage(unreadable(location, error).reason, path=path)
        except GalleryError as error:
            return UnreadableImage(str(error), path=path)
        if not metadata:
            return file
        return replace(file, etag=f"{file.etag} {hashlib.sha256(written(metadata)).hexdigest()[:32]}".strip())


def open_list(location: str, columns: Columns) -> ListedSource:
    """Return the images that a text file names, one path or URL a line. Empty lines do not count."""
    columns.refuse(location)
    return ListedSource(split(location)[0], partial(_lines, location), name=location)


def _lines(location: str) -> Iterable[Entry]:
    with fetched(location) as file:
        for number, line in enumerate(file):
            path = os.fsdecode(line if number else line.removeprefix(BOM_UTF8)).strip("\r\n")
            if path:
                yield path, {}
