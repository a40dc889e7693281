"""Limits on all images of one request to a server together. The client keeps to them, and the server checks them."""

from __future__ import annotations

from collections.abc import Mapping

from cirrus_client.errors import InvalidImage
from cirrus_client.image.decode import check_header
from cirrus_client.image.limits import MAX_REQUEST_BYTES, MAX_REQUEST_PIXELS


def split_images(images: Mapping[int, bytes], max_images: int, item: str) -> list[list[int]]:
    """Return the numbers of images in groups that are requests within the limits. One image alone always is.

    max_images: the largest group. item: what the images are, like "query", for errors. Raises InvalidImage, with the
    number as its position, if an image is not acceptable.
    """
    groups: list[list[int]] = []
    room_bytes = room_pixels = -1
    for number, image in images.items():
        try:
            pixels = check_header(image).pixels
        except InvalidImage as error:
            raise error.at(item, number) from None
        if room_bytes < len(image) or room_pixels < pixels or len(groups[-1]) == max_images:
            groups.append([])
            room_bytes, room_pixels = MAX_REQUEST_BYTES, MAX_REQUEST_PIXELS
        groups[-1].append(number)
        room_bytes, room_pixels = room_bytes - len(image), room_pixels - pixels
    return groups
