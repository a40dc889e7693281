"""Limits on untrusted images, checked before anything is decoded."""

from __future__ import annotations

MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 100_000_000
