"""The interface of what is known of an index's items: their paths, their metadata, and which of them a filter means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from cirrus_client.gallery.sources.store import url_below
from cirrus_client.index.columns import ColumnSummary
from cirrus_client.index.filter_models import Filter
from cirrus_client.index.protocol import Selection

_WEB = re.compile("https?://", re.IGNORECASE)
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")


class Groups(Protocol):
    """The images of an index, grouped by their values in a column. Threads may share it."""

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the group of each row, int64 [n]; -1 where the value is null.

        rows: int64 [n]. Only numbers of one call can be compared.
        """
        ...

    def others(self, rows: NDArray[np.int64], among: Selection | None) -> Selection:
        """Return the images of a selection without the groups of some rows; None selects from all.

        What is in no group stays, and so may a group whose value can't be written as a condition.
        """
        ...


@dataclass(frozen=True)
class Item:
    """A gallery image.

    id: path relative to the root of the images. image: where the image is, a file path or a URL. metadata: the other
    columns of the index.
    """

    id: str
    image: str
    metadata: dict[str, Any]


class Items(Protocol):
    """The images of an index. An image's row never changes. Threads may share it."""

    @property
    def images(self) -> str:
        """The root of the images' paths, a folder or a URL prefix."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def rows(self, rows: Sequence[int]) -> Sequence[Item | None]:
        """Return the images of rows, in the order of `rows`; None for an image that is not there, or no longer."""
        ...

    def find(self, id: str) -> int | None:
        """Return the row of an image by its id, or None."""
        ...

    def same_bytes(self, content: bytes) -> list[int]:
        """Return the rows of images whose files have this content."""
        ...

    def ids(self) -> Iterator[str]:
        """Yield the ids of all images."""
        ...

    def columns(self) -> list[ColumnSummary]:
        """Describe the columns of the metadata."""
        ...

    def select(self, wanted: Filter) -> Selection:
        """Return the images in a filter, as the index's `search_among` takes them. Raises InvalidFilter."""
        ...

    def groups(self, column: str) -> Groups:
        """Group the images by their values in a column.

        Raises InvalidFilter, with the place "unique", if there is no such column, or its values can't be compared.
        """
        ...


def located(images: str, path: str) -> str:
    """Return where an image is. images: the root of the paths. path: of the image, or a URL.

    Below a web address, a path is escaped, unless it is: the names in a web server's own listing are. The keys of other
    stores, like s3, are taken as they are.
    """
    if "://" in path:
        return path
    if "://" not in images:
        return str(Path(images) / path)
    if _WEB.match(images):
        path = quote(path, safe="/%" if _ESCAPE.search(path) else "/")
    return url_below(images, path)
