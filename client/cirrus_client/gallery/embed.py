"""Embed the images of a source: decode in parallel, resume after a crash, list broken files and go on.

A shard is a slice of the sorted list of files, embedded and committed as one. A job that is killed at any moment
resumes with the first shard that is not committed: nothing is lost or doubled. When the source has changed, shards with
changed or vanished files are embedded again, and new files form new shards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.gallery.source import FolderSource, ImageFile, Source
from cirrus_client.gallery.store import GallerySummary, GalleryWriter
from cirrus_client.gallery.stream import EmbedStream

log = logging.getLogger(__name__)

Prepare = Callable[[Source, ImageFile], Any]
"""An encoder's own way from an image of a source to what its `encode_prepared` takes. Raises InvalidImage."""


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
    show_progress: bool = False,
) -> GallerySummary:
    """Embed every image of a folder or another source into `out`, or resume doing so.

    prepare: None reads an image and calls `Encoder.prepare`. queries: real query embeddings of the encoder's space,
    float32 [Q, D], kept with the gallery to tune an approximate index on. workers: decoding threads; None takes the
    machine's cores. show_progress: draw a progress bar on stderr. Raises GalleryError if the source has no image or
    `out` is not a gallery of it, and SpaceMismatch if `out` was embedded in another space.
    """
    source: Source = FolderSource(images) if isinstance(images, (str, Path)) else images
    files = source.list()
    writer = GalleryWriter.open(out, images=source.root, space=encoder.space)
    if queries is not None:
        writer.keep_queries(queries)
    plan = writer.plan(files, shard_size)
    for shard_id in plan.stale:
        writer.drop(shard_id)
    if plan.done:
        log.info("resuming: %d of %d files are done", plan.done, len(files))
    todo = sum(len(shard.files) for shard in plan.pending)
    with (
        EmbedStream(source, encoder, prepare=prepare, batch_size=batch_size, workers=workers) as stream,
        tqdm(total=todo, desc="embedding", unit="image", disable=not show_progress) as progress,
    ):
        for shard in plan.pending:
            writer.commit(shard, *stream.embed(shard.files, progress.update))
    return writer.summary(new=todo)
