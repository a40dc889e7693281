"""Embedded galleries: list and decode images, embed them, and keep the embeddings."""

from cirrus_client.gallery.embed import (
    BUNDLE,
    MANIFEST,
    Gallery,
    GalleryManifest,
    GallerySummary,
    check_free,
    embed_gallery,
    read_gallery,
)

__all__ = [
    "BUNDLE",
    "MANIFEST",
    "Gallery",
    "GalleryManifest",
    "GallerySummary",
    "check_free",
    "embed_gallery",
    "read_gallery",
]
