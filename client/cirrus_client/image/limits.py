"""Limits on untrusted images. All are checked on the header and on a scan of the file's parts, before decoding.

Together they bound the time and memory of one image, since a decoder in C can't be interrupted.
"""

from __future__ import annotations

MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 100_000_000
MAX_REQUEST_PIXELS = 10 * MAX_IMAGE_PIXELS
MAX_REQUEST_BYTES = 512 * 2**20
"""Pixels, and bytes, of all images in one request to a server."""

MAX_PARTS = 100_000
"""Segments of a JPEG, chunks of a PNG or WebP, blocks before a GIF's first frame, strips or tiles of a TIFF."""

MAX_SCANS = 100
"""Scans of a JPEG. Encoders write ten; libtiff has the same limit (JPEG_MAX_ALLOWED_SCAN_NUMBER)."""

MAX_SCANNED_PIXELS = 20 * MAX_IMAGE_PIXELS
"""Scans of a JPEG times its pixels."""

MAX_RLE_PIXELS = 8_000_000
"""Pixels, and bytes, of a run-length encoded BMP, which Pillow decodes in Python."""

MAX_TAG_BYTES = 2**20
"""One tag of a TIFF, and the part of EXIF or XMP in which an orientation is looked for."""

BOMB_PIXELS = 25_000_000
BOMB_PIXELS_PER_BYTE = 10_000
"""From BOMB_PIXELS on, an image of more pixels per byte is one flat colour at best: a decompression bomb."""
