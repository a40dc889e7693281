"""What a file's name says of its content: enough to list it as an image, and where reading is dear, to skip it."""

from __future__ import annotations

import mimetypes
from pathlib import PurePosixPath

from cirrus_client.gallery.sources.store import unchained

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"}
)
"""Files with these suffixes are images until their content says otherwise, so that listing does not open them."""

CONTAINER_SUFFIXES = (".tar", ".parquet")


def has_image_suffix(path: str) -> bool:
    """Return whether a path ends in a suffix of images."""
    return suffix_of(path) in IMAGE_SUFFIXES


def names_other_content(path: str) -> bool:
    """Return whether the suffix stands for content that is no image, like `.json`."""
    kind = mimetypes.guess_type(f"file{suffix_of(path)}")[0]
    return kind is not None and not kind.startswith("image/")


def no_image(path: str) -> str:
    """Return the reason for which a file whose content is no image is skipped."""
    suffix = suffix_of(path)
    if suffix in CONTAINER_SUFFIXES:
        return f"its images are embedded if it is the source itself; give it, or '*{suffix}'"
    named = f"ends in '{suffix}'" if suffix else "has no suffix"
    return f"it does not begin as an image does, and its name {named}"


NOT_UTF8 = "its name is not UTF-8; rename it"


def suffix_of(path: str) -> str:
    """Return the suffix of a path or URL in lower case, with its dot. In a path, `?` may be a letter or a wildcard."""
    named = unchained(path)[0].partition("?")[0] if "://" in path else path
    return PurePosixPath(named).suffix.partition("?")[0].lower()
