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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.errors import GalleryError, InvalidImage, UnreadableImage
from cirrus_client.gallery.plan import KnownShard, Plan
from cirrus_client.gallery.source import AnySource, ImageFile, PartedSource, PassedOver, Source
from cirrus_client.gallery.sources.folder import nothing_found
from cirrus_client.gallery.sources.kinds import open_source
from cirrus_client.gallery.sources.store import impatient_threads
from cirrus_client.gallery.store import read_gallery
from cirrus_client.gallery.stream import Recollection, Rejected, Undone
from cirrus_client.gallery.twins import Twins
from cirrus_client.gallery.work import DoneShard, OpenedPart, Tools, Unit, Workforce, WorkOptions, work
from cirrus_client.gallery.writer import GalleryWriter
from cirrus_client.resuming import resumable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GallerySummary:
    """The content of a gallery after a run.

    embedded: number of images. rejected: files that are not usable images. undone: files that the machine could not
    deal with; the next run does them. unread: folders and files that could not be looked at. skipped: what is no image
    file. missing: number of embedded images that the source no longer has. new: number of files that this run embedded
    or rejected. copies: number of these files that took their embedding from a file with the same bytes.
    """

    embedded: int
    rejected: tuple[Rejected, ...]
    undone: tuple[Undone, ...]
    unread: tuple[PassedOver, ...]
    skipped: tuple[PassedOver, ...]
    missing: int
    new: int
    copies: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether every image of the source is embedded or rejected."""
        return not self.undone and not self.unread


def embed_gallery(
    images: Path | str | AnySource,
    out: Path | str,
    encoder: Encoder,
    *,
    recollection: Recollection | None = None,
    workforce: Workforce | None = None,
    queries: Embeddings | None = None,
    batch_size: int = 32,
    shard_size: int = 10_000,
    workers: int | None = None,
    prune: bool = False,
    show_progress: bool = False,
) -> GallerySummary:
    """Embed every image of a folder or another source into the gallery `out`, or resume an earlier run.

    images: a source, or a location for `open_source`. recollection: what is known of images, so that they need not be
    read; a `CachedEncoder` is one. workforce: what embeds in other processes; None embeds in this one. queries: real
    query embeddings in the encoder's space, float32 [Q, D]. They are stored in the gallery to tune an approximate index
    on. batch_size, shard_size: images per batch and per shard. workers: number of decoding threads; None means one per
    core. prune: remove embeddings of images that the source no longer has. show_progress: draw a progress bar on
    stderr. Raises GalleryError if the source has no image, `out` is not a gallery of this source, or pruning is not
    safe because part of the source can't be read. Raises SpaceMismatch if `out` was embedded in another space, and
    OutputError if another job writes it.
    """
    source = open_source(images) if isinstance(images, (str, Path)) else images
    options = WorkOptions(encoder.space.item_shape, shard_size, batch_size, prune)
    listing = source.parts() if isinstance(source, PartedSource) else source.list()
    if prune and listing.unread:
        raise GalleryError(
            f"{source.root}: {listing.unread[0].path} can't be read ({listing.unread[0].reason}), so which images are "
            "gone is not known; mend that, or do not prune"
        )
    writer = GalleryWriter.open(out, images=source.root, space=encoder.space)
    with writer.alone():
        if queries is not None:
            writer.keep_queries(queries)
        tally = _Tally(skipped=[*listing.skipped], unread=[*listing.unread])
        units = _units(writer, source, listing.files, options, tally)
        total = None if isinstance(source, PartedSource) else sum(len(s.files) for unit in units for s in unit.shards)
        twins = Twins(Path(out), writer.digests())
        here = _here(Tools(encoder, recollection, twins.embedding, workers))
        with tqdm(total=total, desc="embedding", unit="image", disable=not show_progress) as progress:
            _commit_all((workforce or here)(source, units, options, progress.update), units, writer, twins, tally)
        summary = GallerySummary(
            embedded=len(read_gallery(out, allow_empty=True)),
            rejected=writer.rejected(),
            undone=tuple(tally.undone),
            unread=tuple(tally.unread),
            skipped=tuple(tally.skipped),
            missing=tally.missing,
            new=tally.new,
            copies=tally.copies,
        )
    if summary.is_whole and not summary.embedded and not summary.rejected:
        raise GalleryError(nothing_found(source.root, summary.skipped, summary.unread))
    return summary


@dataclass
class _Tally:
    """What a run has found and done so far."""

    skipped: list[PassedOver]
    unread: list[PassedOver]
    undone: list[Undone] = field(default_factory=list)
    missing: int = 0
    new: int = 0
    copies: int = 0

    def opened(self, found: OpenedPart) -> None:
        self.skipped += found.listing.skipped
        self.unread += found.listing.unread
        self.missing += found.plan.missing

    def committed(self, done: DoneShard) -> None:
        self.undone += done.embedded.undone
        self.new += len(done.shard.files) - len(done.embedded.undone)
        self.copies += done.embedded.copies


def _units(
    writer: GalleryWriter, source: AnySource, files: Sequence[ImageFile], options: WorkOptions, tally: _Tally
) -> list[Unit]:
    """Return what is left to do, and deal with the images that the source no longer has. files: or parts."""
    if isinstance(source, PartedSource):
        parts, tally.missing = writer.not_done(files, prune=options.prune)
        if len(parts) < len(files):
            log.info("%d of %d parts are done", len(files) - len(parts), len(files))
        known = writer.known([part.path for part in parts])
        _deal_with_gone(writer, {part.path for part in files}, tally, prune=options.prune)
        return [Unit(part, known=known[part.path]) for part in parts]
    plan = _plan(writer, source, files, options)
    if plan.done:
        log.info("resuming: %d of %d files are done", plan.done, len(files))
    _deal_with_gone(writer, {""}, tally, prune=options.prune)
    tally.missing += plan.missing
    return [Unit(shards=(shard,)) for shard in plan.pending]


class _Progress:
    """How far a part is. left: number of shards that are not committed, or have an image that is undone."""

    def __init__(self, opened: OpenedPart, known: Sequence[KnownShard]) -> None:
        self.opened = opened
        self.left = len(opened.plan.pending)
        self.shards = {shard.id for shard in known}

    def committed(self, done: DoneShard, name: str | None) -> None:
        self.shards -= {done.shard.replaces or ""}
        self.shards |= {name} if name else set()
        self.left -= 0 if done.embedded.undone else 1


def _commit_all(
    results: Iterator[OpenedPart | DoneShard],
    units: Sequence[Unit],
    writer: GalleryWriter,
    twins: Twins,
    tally: _Tally,
) -> None:
    """Commit shards as they come. A part is done when its last shard is committed and nothing of it is left."""
    known = {unit.part.path: unit.known for unit in units if unit.part is not None}
    parts: dict[str, _Progress] = {}
    with resumable() as kept:
        for result in results:
            if isinstance(result, OpenedPart):
                part = result.part.path
                parts[part] = _Progress(result, known[part])
                tally.opened(result)
            else:
                part = result.shard.part
                name = writer.commit(result.shard, result.embedded)
                kept()
                if name is not None and result.shard.replaces is None:
                    twins.add(name, result.embedded.digests)
                tally.committed(result)
                if part in parts:
                    parts[part].committed(result, name)
            if part in parts and not parts[part].left:
                progress = parts.pop(part)
                if not progress.opened.listing.unread:
                    missing = progress.opened.plan.missing
                    writer.note_done(progress.opened.part, shards=progress.shards, missing=missing)


def _here(tools: Tools) -> Workforce:
    """Return what does units in this process. The next part is opened while the images of one are embedded."""

    def run(
        source: AnySource, units: Sequence[Unit], options: WorkOptions, on_done: Callable[[int], object]
    ) -> Iterator[OpenedPart | DoneShard]:
        with ExitStack() as held, impatient_threads(1, "open") as thread:
            ahead: dict[int, tuple[ExitStack, Future[Source]]] = {}

            def open_ahead(place: int) -> None:
                part = units[place].part if place < len(units) else None
                if part is not None and isinstance(source, PartedSource):
                    stack = held.enter_context(ExitStack())
                    ahead[place] = stack, thread.submit(stack.enter_context, source.open(part))

            open_ahead(0)
            for place, unit in enumerate(units):
                open_ahead(place + 1)
                opened = _waited_for(*ahead.pop(place)) if place in ahead else None
                yield from work(source, unit, tools, options, opened=opened, on_done=on_done)

    return run


@contextmanager
def _waited_for(stack: ExitStack, future: Future[Source]) -> Iterator[Source]:
    try:
        yield future.result()
    finally:
        stack.close()


def _plan(writer: GalleryWriter, source: Source, files: Sequence[ImageFile], options: WorkOptions) -> Plan:
    """Return the plan, in which files are embedded again whose bytes are not those that were rejected."""
    plan = writer.plan(files, options.shard_size, prune=options.prune)
    changed = frozenset(item.file for item in plan.rejected if not _still_has(source, item))
    return writer.plan(files, options.shard_size, prune=options.prune, changed=changed) if changed else plan


def _still_has(source: Source, rejected: Rejected) -> bool:
    if rejected.file.etag and not rejected.file.mtime_ns:
        return True
    try:
        return hashlib.sha256(source.read(rejected.file)).hexdigest() == rejected.sha256
    except InvalidImage:
        return not rejected.sha256
    except (UnreadableImage, OSError, MemoryError):
        return True


def _deal_with_gone(writer: GalleryWriter, parts: set[str], tally: _Tally, *, prune: bool) -> None:
    """Count or remove the images of parts that the source no longer has."""
    for part, images in writer.parts().items():
        if part not in parts and prune:
            writer.drop_part(part)
        elif part not in parts:
            tally.missing += images
