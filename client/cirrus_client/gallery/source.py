"""The image files of a folder, and what became of the broken ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cirrus_client.errors import GalleryError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageFile:
    """An image file as it was when it was listed; path is relative to the images' root."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Rejected:
    """A file that is no usable image, and why."""

    file: ImageFile
    reason: str


def list_images(root: Path) -> list[ImageFile]:
    """Return every image file under a folder, sorted by path. Raises GalleryError if there is none."""
    if not root.is_dir():
        raise GalleryError(f"images {root}: there is no such folder")
    files = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            path = Path(folder) / name
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                files.append(image_file(root, str(path.relative_to(root))))
    if not files:
        raise GalleryError(f"images {root}: no file ends in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(files, key=lambda file: file.path)


def image_file(root: Path, path: str) -> ImageFile:
    """Return a file below a folder as it is now. Raises GalleryError if it can't be looked at."""
    try:
        status = (root / path).stat()
    except OSError as error:
        raise GalleryError(f"image {root / path}: {error.strerror}") from None
    return ImageFile(path, status.st_size, status.st_mtime_ns)
