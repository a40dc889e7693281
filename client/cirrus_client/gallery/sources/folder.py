"""The images below a folder of this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cirrus_client.errors import GalleryError, UnreadableImage
from cirrus_client.files import is_not_utf8
from cirrus_client.gallery.source import ImageFile, Listing, PassedOver
from cirrus_client.gallery.sources.columns import Columns
from cirrus_client.gallery.sources.suffixes import NOT_UTF8, has_image_suffix, no_image
from cirrus_client.image.decode import SIGNATURE_BYTES, begins_as_image
from cirrus_client.image.inputs import read_image_file
from cirrus_client.image.limits import MAX_IMAGE_BYTES


class FolderSource:
    """The image files below a folder, found by their suffix, or by their first bytes where it is another one.

    Symbolic links to files are followed, to folders not.
    """

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
            found = (
                "is a file, and no list (.txt), tar without compression or Parquet file"
                if self._folder.exists()
                else "there is no such folder"
            )
            raise GalleryError(f"images {self._folder}: {found}", path=self._folder)
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
            raise GalleryError(nothing_found(str(self._folder), skipped, unread), path=self._folder)
        return Listing(tuple(sorted(files, key=lambda file: file.path)), tuple(skipped), tuple(unread))

    def read(self, file: ImageFile) -> bytes:
        """See `Source.read`."""
        return read_listed(self._folder / file.path, file)

    def _looked_at(self, path: str) -> ImageFile | PassedOver:
        """Return the image file at a path, or why it is none. Raises OSError if the machine does not show it."""
        if not path.isascii() and is_not_utf8(path):
            return PassedOver(path, NOT_UTF8)
        where = self._folder / path
        try:
            status = where.stat()
        except FileNotFoundError:
            return PassedOver(path, "it is a broken symbolic link" if where.is_symlink() else "it is gone")
        if stat.S_ISDIR(status.st_mode):
            return PassedOver(path, "it is a symbolic link to a folder, which is not followed")
        if not stat.S_ISREG(status.st_mode):
            return PassedOver(path, "it is not a regular file")
        if not has_image_suffix(path):
            with where.open("rb") as file:
                if not begins_as_image(file.read(SIGNATURE_BYTES)):
                    return PassedOver(path, no_image(path))
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


def open_folder(location: str, columns: Columns) -> FolderSource:
    """Return the images below a folder of this machine."""
    columns.refuse(location)
    return FolderSource(location)


def read_listed(path: Path, file: ImageFile) -> bytes:
    """Return the bytes of a file. Raises UnreadableImage if it can't be read, or has changed since it was listed."""
    content = read_image_file(path)
    status = path.stat()
    whole = len(content) == min(file.size, MAX_IMAGE_BYTES + 1)
    if not whole or (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise UnreadableImage(
            f"image file {path} has changed since it was listed; the next run takes it as it is", path=str(path)
        )
    return content


def nothing_found(where: str, skipped: Sequence[PassedOver], unread: Sequence[PassedOver]) -> str:
    """Return the message for a place without images, with an example of what is there."""
    message = f"images {where}: there is no image"
    for found, what in ((unread, "could not be read"), (skipped, "skipped")):
        if found:
            message += f"; {len(found):,} {what}, like {found[0].path}: {found[0].reason}"
    return message


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
