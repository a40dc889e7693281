"""Embed the images of a source: decode in parallel, resume after a crash, and list broken files instead of stopping.

A shard is a slice of the sorted list of files. It is embedded and committed as a whole. A job that was killed at any
moment resumes with the first shard that is not committed, so nothing is lost or embedded twice. If the source has
changed, only changed and new files are embedded. Embeddings of images that are gone stay, unless pruning was asked for.

A file is rejected for its bytes alone, and as long as it has these bytes. What the machine could not read or decode is
undone, and the next run does it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.errors import GalleryError, UnreadableImage
from cirrus_client.gallery.source import FolderSource, ImageFile, Listing, PassedOver, Source
from cirrus_client.gallery.store import read_gallery
from cirrus_client.gallery.stream import EmbedStream, Rejected, Undone
from cirrus_client.gallery.writer import GalleryWriter, Plan

log = logging.getLogger(__name__)

Prepare = Callable[[Source, ImageFile], Any]
"""Reads an image of a source and prepares it for the encoder's `encode_prepared`. Raises InvalidImage."""


@dataclass(frozen=True)
class GallerySummary:
    """The content of a gallery after a run.

    embedded: number of images. rejected: files that are not usable images. undone: files that the machine could not
    deal with; the next run does them. unread: folders and files that could not be looked at. skipped: what is no image
    file. missing: number of embedded images that the source no longer has. new: number of files that this run embedded
    or rejected.
    """

    embedded: int
    rejected: tuple[Rejected, ...]
    undone: tuple[Undone, ...]
    unread: tuple[PassedOver, ...]
    skipped: tuple[PassedOver, ...]
    missing: int
    new: int

    @property
    def is_whole(self) -> bool:
        """Whether every image of the source is embedded or rejected."""
        return not self.undone and not self.unread


def embed_gallery(
    images: Path | str | Source,
    out: Path | str,
    encoder: Encoder,
    *,
    prepare: Prepare | None = None,
    queries: Embeddings | None = None,
    batch_size: int = 32,
    shard_size: int = 10_000,
    workers: int | None = None,
    prune: bool = False,
    show_progress: bool = False,
) -> GallerySummary:
    """Embed every image of a folder or another source into the gallery `out`, or resume an earlier run.

    prepare: how images are read and prepared; None reads an image and calls `Encoder.prepare`. queries: real query
    embeddings in the encoder's space, float32 [Q, D]. They are stored in the gallery to tune an approximate index on.
    batch_size, shard_size: images per batch and per shard. workers: number of decoding threads; None means one per
    core. prune: remove embeddings of images that the source no longer has. show_progress: draw a progress bar on
    stderr. Raises GalleryError if the source has no image, `out` is not a gallery of this source, or pruning is not
    safe because part of the source can't be read. Raises SpaceMismatch if `out` was embedded in another space, and
    OutputError if another job writes it.
    """
    source: Source = FolderSource(images) if isinstance(images, (str, Path)) else images
    listing = source.list()
    if prune and listing.unread:
        raise GalleryError(
            f"{source.root}: {listing.unread[0].path} can't be read ({listing.unread[0].reason}), so which images are "
            "gone is not known; mend that, or do not prune"
        )
    writer = GalleryWriter.open(out, images=source.root, space=encoder.space)
    with writer.alone():
        if queries is not None:
            writer.keep_queries(queries)
        plan = _plan(writer, source, listing, shard_size, prune=prune)
        if plan.done:
            log.info("resuming: %d of %d files are done", plan.done, len(listing.files))
        todo = sum(len(shard.files) for shard in plan.pending)
        undone: list[Undone] = []
        with (
            EmbedStream(source, encoder, prepare=prepare, batch_size=batch_size, workers=workers) as stream,
            tqdm(total=todo, desc="embedding", unit="image", disable=not show_progress) as progress,
        ):
            for shard in plan.pending:
                embedded = stream.embed(shard.files, progress.update)
                writer.commit(shard, embedded)
                undone += embedded.undone
        return GallerySummary(
            embedded=len(read_gallery(out, allow_empty=True)),
            rejected=writer.rejected(),
            undone=tuple(undone),
            unread=listing.unread,
            skipped=listing.skipped,
            missing=plan.missing,
            new=todo - len(undone),
        )


def _plan(writer: GalleryWriter, source: Source, listing: Listing, shard_size: int, *, prune: bool) -> Plan:
    """Return the plan, in which files are embedded again whose bytes are not those that were rejected."""
    plan = writer.plan(listing.files, shard_size, prune=prune)
    changed = frozenset(item.file for item in plan.rejected if not _still_has(source, item))
    return writer.plan(listing.files, shard_size, prune=prune, changed=changed) if changed else plan


def _still_has(source: Source, rejected: Rejected) -> bool:
    try:
        return hashlib.sha256(source.read(rejected.file)).hexdigest() == rejected.sha256
    except (UnreadableImage, OSError, MemoryError):
        return True
