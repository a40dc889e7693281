"""Galleries: list and read images, embed them, and store the embeddings."""

from cirrus_client.gallery.embed import embed_gallery
from cirrus_client.gallery.source import FolderSource, ImageFile, Rejected, Source
from cirrus_client.gallery.store import (
    BUNDLE,
    MANIFEST,
    Gallery,
    GalleryManifest,
    GalleryShard,
    GallerySummary,
    GalleryWriter,
    Shard,
    check_free,
    read_gallery,
)

__all__ = [
    "BUNDLE",
    "MANIFEST",
    "FolderSource",
    "Gallery",
    "GalleryManifest",
    "GalleryShard",
    "GallerySummary",
    "GalleryWriter",
    "ImageFile",
    "Rejected",
    "Shard",
    "Source",
    "check_free",
    "embed_gallery",
    "read_gallery",
]
