"""Sources list the images of a gallery and read their bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cirrus_client.errors import GalleryError
from cirrus_client.image.inputs import read_image_file

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageFile:
    """An image at the time when it was listed.

    path: relative to the source's root; it identifies the image in the gallery. size: in bytes. mtime_ns: time of the
    last change in ns.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Rejected:
    """A file that is not a usable image, and why."""

    file: ImageFile
    reason: str


class Source(Protocol):
    """Lists and reads the images of a gallery. Several threads call `read` at the same time."""

    @property
    def root(self) -> str:
        """Where the images are: an absolute folder or a URL. The gallery stores it. Image paths are relative to it."""
        ...

    def list(self) -> list[ImageFile]:
        """Return every image, sorted by path. Raises GalleryError if there is none."""
        ...

    def read(self, file: ImageFile) -> bytes:
        """Return the bytes of an image file. Raises UnreadableImage if it can't be read."""
        ...


class FolderSource:
    """The image files below a folder, found by their suffix."""

    def __init__(self, folder: Path | str, *, only: Sequence[str] | None = None) -> None:
        """Name the folder. Nothing is read yet.

        only: paths of the gallery's images relative to the folder; None takes all of them.
        """
        self._folder = Path(folder)
        self._only = only

    @property
    def root(self) -> str:
        """The absolute path of the folder."""
        return str(self._folder.resolve())

    def list(self) -> list[ImageFile]:
        """See `Source.list`. Also raises GalleryError if the folder or a file of `only` does not exist."""
        if self._only is not None:
            return [self._looked_at(path) for path in sorted(set(self._only))]
        if not self._folder.is_dir():
            raise GalleryError(f"images {self._folder}: there is no such folder", path=self._folder)
        files = []
        for folder, folders, names in os.walk(self._folder):
            folders.sort()
            for name in names:
                path = Path(folder) / name
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    files.append(self._looked_at(str(path.relative_to(self._folder))))
        if not files:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise GalleryError(f"images {self._folder}: no file ends in {suffixes}", path=self._folder)
        return sorted(files, key=lambda file: file.path)

    def read(self, file: ImageFile) -> bytes:
        """See `Source.read`."""
        return read_image_file(self._folder / file.path)

    def _looked_at(self, path: str) -> ImageFile:
        try:
            status = (self._folder / path).stat()
        except OSError as error:
            where = self._folder / path
            raise GalleryError(f"image {where}: {error.strerror}", path=where) from None
        return ImageFile(path, status.st_size, status.st_mtime_ns)
