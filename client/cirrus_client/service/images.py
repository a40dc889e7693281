"""The images of a gallery: read from below its folder only, and made small for a page."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cirrus_client.errors import InvalidImage, UnknownItem, UnreadableImage
from cirrus_client.image.decode import FORMATS, FORMATS_OF_PLUGINS, check_header, decode_checked, memory_of
from cirrus_client.image.inputs import read_image_file
from cirrus_client.image.room import room_for
from cirrus_client.index.items import Item, Items

_CACHE_BYTES = 64 * 2**20
_QUALITY = 85
_MEDIA_TYPES = {name: f"image/{name.lower()}" for name in (*FORMATS, *FORMATS_OF_PLUGINS)}


@dataclass(frozen=True)
class ImageFile:
    """An image as a browser takes it. etag: changes with the content."""

    content: bytes
    media_type: str
    etag: str


class GalleryImages:
    """Reads the images of an index's items. Threads may share it. Thumbnails are kept, up to 64 MiB of them."""

    def __init__(self, items: Items) -> None:
        """Keep the items. No file is opened yet."""
        self._items = items
        self._thumbnails: OrderedDict[tuple[str, int], ImageFile] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def row(self, id: str) -> int:
        """Return the row of an item. Raises UnknownItem."""
        row = self._items.find(id)
        if row is None:
            raise _unknown(id)
        return row

    def item(self, id: str) -> Item:
        """Return an item by its id. Raises UnknownItem."""
        (item,) = self._items.rows([self.row(id)])
        if item is None:
            raise _unknown(id)
        return item

    def read(self, id: str) -> bytes:
        """Return the bytes of an item's image file.

        Raises UnknownItem if there is no such item, its image is at a URL, or its file is not below the folder of the
        images, or can't be read.
        """
        self.row(id)
        if "://" in self._items.images:
            raise UnknownItem(f"the image of item {id!r} is at a URL, and nothing is fetched from one", id=id)
        root = Path(self._items.images).resolve()
        try:
            path = (root / id).resolve()
            if path.is_relative_to(root) and path != root:
                return read_image_file(path)
        except (OSError, ValueError, UnreadableImage, RuntimeError):  # RuntimeError: a loop of links
            pass
        raise UnknownItem(f"the image of item {id!r} can't be read below the gallery's folder", id=id)

    def file(self, id: str, size_px: int | None) -> ImageFile:
        """Return an item's image. size_px: the longer side of a thumbnail; None is the file as it is.

        Raises UnknownItem as `read` does, and for a file that is no image.
        """
        if size_px is None:
            content = self.read(id)
            return ImageFile(content, _MEDIA_TYPES[_format(content, id)], _etag(content))
        with self._lock:
            if (id, size_px) in self._thumbnails:
                self._thumbnails.move_to_end((id, size_px))
                return self._thumbnails[id, size_px]
        made = _thumbnail(self.read(id), id, size_px)
        with self._lock:
            if (id, size_px) not in self._thumbnails:
                self._thumbnails[id, size_px] = made
                self._bytes += len(made.content)
            while self._bytes > _CACHE_BYTES:
                self._bytes -= len(self._thumbnails.popitem(last=False)[1].content)
        return made


def _unknown(id: str) -> UnknownItem:
    return UnknownItem(f"there is no item {id!r}", id=id)


def _format(content: bytes, id: str) -> str:
    try:
        return check_header(content).format
    except InvalidImage:
        raise UnknownItem(f"the file of item {id!r} is no image", id=id) from None


def _thumbnail(content: bytes, id: str, size_px: int) -> ImageFile:
    try:
        header = check_header(content)
        with room_for(memory_of(header, size_px)):
            image = _small(decode_checked(header, size_px), size_px)
    except InvalidImage:
        raise UnknownItem(f"the image of item {id!r} is broken", id=id) from None
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return ImageFile(file.getvalue(), _MEDIA_TYPES["JPEG"], _etag(file.getvalue()))


def _small(image: Image.Image, size_px: int) -> Image.Image:
    if image.mode in ("P", "LA", "PA", "RGBA") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    image = image.convert("RGB")
    image.thumbnail((size_px, size_px))
    return image


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'
