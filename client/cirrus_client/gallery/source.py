"""Sources list the images of a gallery and read their bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cirrus_client.errors import GalleryError, UnreadableImage
from cirrus_client.image.inputs import read_image_file
from cirrus_client.image.limits import MAX_IMAGE_BYTES

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
class PassedOver:
    """A file or folder that a source does not take for an image, or can't look at. path: relative to its root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a source found.

    files: every image, sorted by path. skipped: what is no image file, by its name or kind. unread: files and folders
    that the machine would not show; they may hold images, and a later listing may find them.
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


class FolderSource:
    """The image files below a folder, found by their suffix. Symbolic links to files are followed, to folders not."""

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

    def list(self) -> Listing:
        """See `Source.list`. Also raises GalleryError if the folder or a file of `only` does not exist."""
        if self._only is not None:
            return Listing(tuple(self._named(path) for path in sorted(set(self._only))))
        if not self._folder.is_dir():
            raise GalleryError(f"images {self._folder}: there is no such folder", path=self._folder)
        files: list[ImageFile] = []
        skipped: list[PassedOver] = []
        unread: list[PassedOver] = []

        def refused(error: OSError) -> None:
            unread.append(PassedOver(self._relative(Path(error.filename)), _reason(error)))

        for folder, folders, names in os.walk(self._folder, onerror=refused):
            for name in names + [name for name in folders if (Path(folder) / name).is_symlink()]:
                try:
                    file = self._looked_at(self._relative(Path(folder) / name))
                except OSError as error:
                    unread.append(PassedOver(self._relative(Path(folder) / name), _reason(error)))
                    continue
                if isinstance(file, ImageFile):
                    files.append(file)
                else:
                    skipped.append(file)
        if not files:
            raise GalleryError(_nothing_found(self._folder, skipped, unread), path=self._folder)
        return Listing(tuple(sorted(files, key=lambda file: file.path)), tuple(skipped), tuple(unread))

    def read(self, file: ImageFile) -> bytes:
        """See `Source.read`."""
        path = self._folder / file.path
        content = read_image_file(path)
        status = path.stat()
        whole = len(content) == min(file.size, MAX_IMAGE_BYTES + 1)
        if not whole or (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise UnreadableImage(
                f"image file {path} has changed since it was listed; the next run takes it as it is", path=str(path)
            )
        return content

    def _looked_at(self, path: str) -> ImageFile | PassedOver:
        """Return the image file at a path, or why it is none. Raises OSError if the machine does not show it."""
        where = self._folder / path
        if not path.isascii() and _is_not_utf8(path):
            return PassedOver(path, "its name is not UTF-8; rename it")
        if where.suffix.lower() not in IMAGE_SUFFIXES and not where.is_dir():
            return PassedOver(
                path,
                f"its name ends in '{where.suffix}', which is no image's" if where.suffix else "its name has no suffix",
            )
        try:
            status = where.stat()
        except FileNotFoundError:
            return PassedOver(path, "it is a broken symbolic link" if where.is_symlink() else "it is gone")
        if stat.S_ISDIR(status.st_mode):
            return PassedOver(path, "it is a symbolic link to a folder, which is not followed")
        if not stat.S_ISREG(status.st_mode):
            return PassedOver(path, "it is not a regular file")
        return ImageFile(path, status.st_size, status.st_mtime_ns)

    def _named(self, path: str) -> ImageFile:
        where = self._folder / path
        try:
            status = where.stat()
        except OSError as error:
            raise GalleryError(f"image {where}: {_reason(error)}", path=where) from None
        return ImageFile(path, status.st_size, status.st_mtime_ns)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._folder))


def _is_not_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return True
    return False


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _nothing_found(folder: Path, skipped: Sequence[PassedOver], unread: Sequence[PassedOver]) -> str:
    message = f"images {folder}: no file ends in {', '.join(sorted(IMAGE_SUFFIXES))}"
    for found, what in ((unread, "could not be read"), (skipped, "skipped")):
        if found:
            message += f"; {len(found):,} {what}, like {found[0].path}: {found[0].reason}"
    return message
