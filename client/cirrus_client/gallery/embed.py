"""Embed the images of a source: decode in parallel, resume after a crash, and list broken files instead of stopping.

A shard is a slice of the sorted list of files. It is embedded and committed as a whole. A job that was killed at any
moment resumes with the first shard that is not committed, so nothing is lost or embedded twice. If the source has
changed, shards with changed or removed files are embedded again, and new files form new shards.
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
"""Reads an image of a source and prepares it for the encoder's `encode_prepared`. Raises InvalidImage."""


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
    """Embed every image of a folder or another source into the gallery `out`, or resume an earlier run.

    prepare: how images are read and prepared; None reads an image and calls `Encoder.prepare`. queries: real query
    embeddings in the encoder's space, float32 [Q, D]. They are stored in the gallery to tune an approximate index on.
    batch_size, shard_size: images per batch and per shard. workers: number of decoding threads; None means one per
    core. show_progress: draw a progress bar on stderr. Raises GalleryError if the source has no image, or `out` is
    not a gallery of this source. Raises SpaceMismatch if `out` was embedded in another space.
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
