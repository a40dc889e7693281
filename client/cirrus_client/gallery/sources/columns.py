"""Which columns of a table are the images and their names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cirrus_client.errors import GalleryError


@dataclass(frozen=True)
class Columns:
    """Columns of a table. image: of bytes, paths or URLs. id: of names of images. None chooses them by their names."""

    image: str | None = None
    id: str | None = None

    def refuse(self, location: str) -> None:
        """Raise GalleryError if columns are named for a source that has none."""
        if self.image is not None or self.id is not None:
            raise GalleryError(f"images {location}: has no columns; --image-column and --id-column are for Parquet")


def written(metadata: Mapping[str, Any]) -> bytes:
    """Return what an image's columns hold as bytes, which are others for other values."""
    return json.dumps(metadata, sort_keys=True, default=str).encode(errors="surrogatepass")
