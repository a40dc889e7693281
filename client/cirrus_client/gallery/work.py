"""The work of a gallery job in units that any process can do: some shards of a source, or one of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.errors import UnreadableImage
from cirrus_client.gallery.plan import KnownShard, Plan, Shard, plan_shards
from cirrus_client.gallery.source import AnySource, ImageFile, Listing, PartedSource, PassedOver, Source
from cirrus_client.gallery.stream import Embedded, EmbedStream, Recollection, Undone

_NOTHING = Plan(0, 0, (), ())


@dataclass(frozen=True)
class WorkOptions:
    """What every process of a job must have the same.

    item_shape: of an image's embedding. shard_size, batch_size, prune: see `embed_gallery`.
    """

    item_shape: tuple[int, ...]
    shard_size: int
    batch_size: int
    prune: bool


@dataclass(frozen=True)
class Unit:
    """What a process does at a time. Either `part` is None, or the unit is that part of the source.

    shards: those to embed; of a part they are planned when it has been opened. known: what the gallery has of the part.
    done: ids of shards that were embedded already and are left out.
    """

    part: ImageFile | None = None
    shards: tuple[Shard, ...] = ()
    known: tuple[KnownShard, ...] = field(default=(), repr=False)
    done: frozenset[str] = frozenset()


@dataclass(frozen=True)
class OpenedPart:
    """What was found in a part. The listing's own files are left out."""

    part: ImageFile
    listing: Listing
    plan: Plan


@dataclass(frozen=True)
class DoneShard:
    """A shard that was embedded and is not committed yet."""

    shard: Shard
    embedded: Embedded


Workforce = Callable[
    [AnySource, Sequence[Unit], WorkOptions, Callable[[int], object]], Iterator[OpenedPart | DoneShard]
]
"""Does units, in any order. What belongs to a part comes in order: what is in it, then its shards."""


@dataclass(frozen=True)
class Tools:
    """What a process embeds with, see `EmbedStream`. turn: is held while a unit is embedded, not while it is opened."""

    encoder: Encoder
    recollection: Recollection | None = None
    embedded: Callable[[str], Embeddings | None] = lambda digest: None
    workers: int | None = None
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)


def work(
    source: AnySource,
    unit: Unit,
    tools: Tools,
    options: WorkOptions,
    *,
    opened: AbstractContextManager[Source] | None = None,
    on_done: Callable[[int], object] = lambda count: None,
) -> Iterator[OpenedPart | DoneShard]:
    """Do a unit. Yield what is in its part first, then shard by shard.

    opened: the part, if it has been opened already. on_done: see `EmbedStream.embed`. Raises what `EmbedStream.embed`
    does. A part that can't be opened is yielded as unread.
    """
    with ExitStack() as held:
        shards = unit.shards
        if unit.part is None:
            assert not isinstance(source, PartedSource)
            images: Source = source
        else:
            try:
                images = held.enter_context(opened or _open(source, unit.part))
            except UnreadableImage as error:
                yield from given_up(unit, error.reason, options)
                return
            found = _look(images, unit.part, unit.known, options)
            yield found
            shards = found.plan.pending
        held.enter_context(tools.turn)
        with EmbedStream(
            images,
            tools.encoder,
            recollection=tools.recollection,
            embedded=tools.embedded,
            batch_size=options.batch_size,
            workers=tools.workers,
        ) as stream:
            for shard in shards:
                if shard.id not in unit.done:
                    yield DoneShard(shard, stream.embed(shard.files, on_done))


def given_up(unit: Unit, reason: str, options: WorkOptions) -> Iterator[OpenedPart | DoneShard]:
    """Yield what a unit is that can't be done now: files that are undone, or a part that is unread."""
    if unit.part is not None:
        yield OpenedPart(unit.part, Listing((), (), (PassedOver(unit.part.path, reason),)), _NOTHING)
    for shard in unit.shards:
        undone = tuple(Undone(file, reason) for file in shard.files)
        nothing = np.empty((0, *options.item_shape), dtype=np.float32)
        yield DoneShard(shard, Embedded(nothing, (), undone=undone))


def _open(source: AnySource, part: ImageFile) -> AbstractContextManager[Source]:
    return source.open(part) if isinstance(source, PartedSource) else nullcontext(source)


def _look(images: Source, part: ImageFile, known: tuple[KnownShard, ...], options: WorkOptions) -> OpenedPart:
    listing = images.list()
    prune = options.prune and not listing.unread
    plan = plan_shards(listing.files, known, options.shard_size, prune=prune, part=part.path)
    return OpenedPart(part, Listing((), listing.skipped, listing.unread), plan)
