"""Galleries: list and read images, embed them, and store the embeddings."""

from cirrus_client.gallery.embed import GallerySummary, embed_gallery
from cirrus_client.gallery.layout import BUNDLE, MANIFEST, GalleryManifest, check_free
from cirrus_client.gallery.source import FolderSource, ImageFile, Listing, PassedOver, Source
from cirrus_client.gallery.store import Gallery, GalleryShard, read_gallery
from cirrus_client.gallery.stream import Embedded, EmbedStream, Rejected, Undone
from cirrus_client.gallery.writer import GalleryWriter, Plan, Shard

__all__ = [
    "BUNDLE",
    "MANIFEST",
    "EmbedStream",
    "Embedded",
    "FolderSource",
    "Gallery",
    "GalleryManifest",
    "GalleryShard",
    "GallerySummary",
    "GalleryWriter",
    "ImageFile",
    "Listing",
    "PassedOver",
    "Plan",
    "Rejected",
    "Shard",
    "Source",
    "Undone",
    "check_free",
    "embed_gallery",
    "read_gallery",
]
