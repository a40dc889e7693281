"""The images below a URL of a store that fsspec knows: s3, gs, http, https and others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from cirrus_client.errors import GalleryError, UnreadableImage
from cirrus_client.gallery.source import ImageFile, Listing, PassedOver
from cirrus_client.gallery.sources.columns import Columns
from cirrus_client.gallery.sources.folder import nothing_found
from cirrus_client.gallery.sources.store import (
    described,
    filesystem,
    in_threads,
    patiently,
    read_stored,
    scheme_of,
    unreadable,
    url_below,
)
from cirrus_client.gallery.sources.suffixes import (
    has_image_suffix,
    names_other_content,
    no_image,
    suffix_of,
)
from cirrus_client.image.decode import SIGNATURE_BYTES, begins_as_image


class RemoteSource:
    """The image files below a URL. Threads may share it.

    A file is an image by its suffix, or by its first bytes. Files whose suffix stands for other content, like `.json`,
    are skipped without a request. A file has changed if its etag or size has; where the store has no etags, the time of
    its last change counts.
    """

    def __init__(self, url: str) -> None:
        """Name the URL. Nothing is asked yet."""
        plain = url.rstrip("/")
        self._url = url if plain.endswith(":") else plain

    @property
    def root(self) -> str:
        """The URL."""
        return self._url

    def list(self) -> Listing:
        """See `Source.list`. Also raises UnreadableImage if the store does not answer."""
        store, inner = filesystem(self._url)
        store.invalidate_cache()
        try:
            found, unread = _found(self._url, store, inner)
        except FileNotFoundError:
            raise GalleryError(f"images {self._url}: there is nothing") from None
        except OSError as error:
            raise unreadable(self._url, error) from None
        if inner in found:
            raise GalleryError(f"images {self._url}: is a file; give its folder, or a list of URLs in a .txt file")
        entries = {
            name.removeprefix(inner).removeprefix("/"): info
            for name, info in found.items()
            if info.get("type") != "directory"
        }
        listing = sorted_out([*in_threads(self._looked_at, entries, entries.values()), *unread])
        if not listing.files:
            raise GalleryError(nothing_found(self._url, listing.skipped, listing.unread))
        return listing

    def read(self, file: ImageFile) -> bytes:
        """See `Source.read`."""
        return read_stored(*self._place(file.path), file, url=url_below(self._url, file.path))

    def _looked_at(self, path: str, info: dict[str, Any]) -> ImageFile | PassedOver | UnreadableImage:
        url = url_below(self._url, path)
        if not path or path.endswith("/"):
            return PassedOver(path or "/", "its name ends in '/', as that of a folder does")
        if not has_image_suffix(path) and names_other_content(path):
            return PassedOver(path, f"its name ends in '{suffix_of(path)}', which is no image's")
        store, inner = self._place(path)
        try:
            if info.get("size") is None:
                info = patiently(lambda: store.info(inner))
            if not has_image_suffix(path):
                start = patiently(lambda: store.cat_file(inner, start=0, end=SIGNATURE_BYTES))
                if not begins_as_image(start[:SIGNATURE_BYTES]):
                    return PassedOver(path, no_image(path))
        except OSError as error:
            return UnreadableImage(unreadable(url, error).reason, path=path)
        return described(info, path)

    def _place(self, path: str) -> tuple[Any, str]:
        """Return the file system, and where it has a path. A key may have letters that mean something in a URL."""
        store, inner = filesystem(self._url)
        return store, f"{inner.rstrip('/')}/{path}"


def open_url(location: str, columns: Columns) -> RemoteSource:
    """Return the images below a URL."""
    columns.refuse(location)
    return RemoteSource(location)


def _found(url: str, store: Any, inner: str) -> tuple[dict[str, dict[str, Any]], list[UnreadableImage]]:
    """Return the files below the URL, and the folders that can't be listed.

    Of the web, fsspec's own walk leaves out folders whose server does not answer, as if they were empty.
    """
    if scheme_of(url) not in ("http", "https"):
        return patiently(lambda: store.find(inner, detail=True)), []
    found: dict[str, dict[str, Any]] = {}
    unread: list[UnreadableImage] = []
    folders, known = [inner], {inner}
    while folders:
        folder = folders.pop()
        try:
            entries = patiently(partial(store.ls, folder, detail=True))
        except OSError as error:
            if folder == inner:
                raise
            path = folder.removeprefix(inner).strip("/")
            unread.append(UnreadableImage(unreadable(folder, error).reason, path=path))
            continue
        inside = {info["name"]: info for info in entries if info["name"] not in known}
        known.update(inside)
        folders += [name for name, info in inside.items() if info["type"] == "directory"]
        found |= {name: info for name, info in inside.items() if info["type"] != "directory"}
    return found or patiently(lambda: store.find(inner, detail=True)), unread


def sorted_out(looked: list[ImageFile | PassedOver | UnreadableImage]) -> Listing:
    """Return a listing of what is an image, what is none, and what could not be looked at."""
    files = sorted((one for one in looked if isinstance(one, ImageFile)), key=lambda file: file.path)
    skipped = (one for one in looked if isinstance(one, PassedOver))
    return Listing(tuple(files), tuple(skipped), tuple(_unread(looked)))


def _unread(looked: list[ImageFile | PassedOver | UnreadableImage]) -> Iterator[PassedOver]:
    for one in looked:
        if isinstance(one, UnreadableImage):
            yield PassedOver(one.path or "", one.reason)
