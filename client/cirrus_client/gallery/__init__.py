"""Galleries: list and read images, embed them, and store the embeddings."""

from cirrus_client.gallery.embed import GallerySummary, embed_gallery
from cirrus_client.gallery.layout import BUNDLE, MANIFEST, GalleryManifest, check_free
from cirrus_client.gallery.plan import Plan, Shard
from cirrus_client.gallery.source import ImageFile, Listing, PartedSource, PassedOver, Source
from cirrus_client.gallery.sources.columns import Columns
from cirrus_client.gallery.sources.folder import FolderSource
from cirrus_client.gallery.sources.kinds import open_source
from cirrus_client.gallery.store import Gallery, GalleryShard, read_gallery
from cirrus_client.gallery.stream import Embedded, EmbedStream, Recollection, Rejected, Undone
from cirrus_client.gallery.writer import GalleryWriter

__all__ = [
    "BUNDLE",
    "MANIFEST",
    "Columns",
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
    "PartedSource",
    "PassedOver",
    "Plan",
    "Recollection",
    "Rejected",
    "Shard",
    "Source",
    "Undone",
    "check_free",
    "embed_gallery",
    "open_source",
    "read_gallery",
]
