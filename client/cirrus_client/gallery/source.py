"""Sources list the images of a gallery and read their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class ImageFile:
    """An image, or a part of a source, at the time when it was listed.

    path: relative to the source's root; it identifies the image in the gallery. size: in bytes; -1 where the source
    does not say. mtime_ns: time of the last change in ns; 0 where `etag` says more. etag: what the store or container
    says of the content, and the source of columns, other for other ones; empty for files of a folder. metadata: columns
    that come with the image. Two images that differ in metadata alone are equal, so `etag` covers what must not go
    unnoticed.
    """

    path: str
    size: int
    mtime_ns: int
    etag: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that a source does not take for an image, or can't look at. path: relative to its root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a source found.

    files: every image, sorted by path. skipped: what is no image file, by its content, name or kind. unread: files and
    folders that the machine would not show; they may hold images, and a later listing may find them.
    """

    files: tuple[ImageFile, ...]
    skipped: tuple[PassedOver, ...] = ()
    unread: tuple[PassedOver, ...] = ()


class Source(Protocol):
    """Lists and reads the images of a gallery. Several threads call `read` at the same time."""

    @property
    def root(self) -> str:
        """Where the images are: an absolute folder or a URL. The gallery stores it. Image paths are relative to it."""
        ...

    def list(self) -> Listing:
        """Return every image. Raises GalleryError if there is none."""
        ...

    def read(self, file: ImageFile) -> bytes:
        """Return the bytes of an image. Raises UnreadableImage if they can't be read now, or are not those listed."""
        ...


@runtime_checkable
class PartedSource(Protocol):
    """Images in parts that are opened as wholes, like tars. A part that has not changed is not opened again."""

    @property
    def root(self) -> str:
        """See `Source.root`."""
        ...

    def parts(self) -> Listing:
        """Return every part, sorted by path. Raises GalleryError if there is none."""
        ...

    def open(self, part: ImageFile) -> AbstractContextManager[Source]:
        """Return a part as a source. The paths of its images begin with the part's, and it may hold no image.

        Raises UnreadableImage if the part can't be read now.
        """
        ...


AnySource = Source | PartedSource
