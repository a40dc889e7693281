"""Plan which shards a gallery needs, from the files that are listed and those that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cirrus_client.gallery.layout import shard_id
from cirrus_client.gallery.source import ImageFile
from cirrus_client.gallery.stream import Rejected


@dataclass(frozen=True)
class Shard:
    """Image files that are embedded and committed together.

    replaces: the id of an older shard. Its other images come along, except `removed`. part: of the source, to which the
    files belong; empty where it has none.
    """

    files: tuple[ImageFile, ...]
    replaces: str | None = None
    removed: frozenset[ImageFile] = frozenset()
    part: str = ""

    @property
    def id(self) -> str:
        """A hash of the files, by which processes that plan the same shards can share them."""
        return shard_id(self.files, ())


@dataclass(frozen=True)
class KnownShard:
    """The files of a shard in the gallery."""

    id: str
    accepted: tuple[ImageFile, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class Plan:
    """The work that a gallery needs to match a list of files.

    done: number of files that are embedded or rejected as they are. missing: number of images in the gallery that are
    not in the list. pending: shards to embed and commit. rejected: verdicts on files that are done.
    """

    done: int
    missing: int
    pending: tuple[Shard, ...]
    rejected: tuple[Rejected, ...]


def plan_shards(
    files: Sequence[ImageFile],
    known: Sequence[KnownShard],
    shard_size: int,
    *,
    prune: bool = False,
    changed: frozenset[ImageFile] = frozenset(),
    part: str = "",
) -> Plan:
    """Return the work that is left until shards that are known have these files; see `GalleryWriter.plan`."""
    listed = {file.path: file for file in files}
    pending: list[Shard] = []
    verdicts: list[Rejected] = []
    paths: set[str] = set()
    done = missing = 0
    for shard in known:
        entries = [*shard.accepted, *(item.file for item in shard.rejected)]
        paths.update(entry.path for entry in entries)
        gone = [entry for entry in entries if entry.path not in listed]
        same = {entry for entry in entries if listed.get(entry.path) == entry and entry not in changed}
        again = sorted({e.path for e in entries} - {e.path for e in same} - {e.path for e in gone})
        if again or (gone and prune):
            removed = frozenset(gone if prune else ())
            pending.append(Shard(tuple(listed[path] for path in again), shard.id, removed, part))
        done += len(same)
        missing += 0 if prune else len(gone)
        verdicts += [item for item in shard.rejected if item.file in same]
    rest = [file for file in files if file.path not in paths]
    new = [Shard(tuple(rest[start : start + shard_size]), part=part) for start in range(0, len(rest), shard_size)]
    return Plan(done, missing, (*pending, *new), tuple(verdicts))
