"""Plan and write the shards of a gallery."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import GalleryError, SpaceMismatch
from cirrus_client.files import atomic_path, remove_abandoned, sha256_of_file, write_atomically
from cirrus_client.gallery.layout import (
    LOCK,
    MANIFEST,
    QUERIES,
    REJECTED_SCHEMA,
    GalleryManifest,
    Layout,
    QueriesRecord,
    ShardRecord,
    check_free,
    file_table,
    read_manifest,
    shard_id,
    table_files,
)
from cirrus_client.gallery.source import ImageFile
from cirrus_client.gallery.store import Gallery, check_length
from cirrus_client.gallery.stream import Embedded, Rejected
from cirrus_client.outputs import only_writer
from cirrus_client.records import write_sealed


@dataclass(frozen=True)
class Shard:
    """Image files that are embedded and committed together.

    replaces: the id of an older shard. Its other images come along, except `removed`.
    """

    files: tuple[ImageFile, ...]
    replaces: str | None = None
    removed: frozenset[ImageFile] = frozenset()

    @property
    def id(self) -> str:
        """A hash of the files, by which processes that plan the same shards can share them."""
        return shard_id(self.files, ())


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


class GalleryWriter:
    """Writes the shards of a gallery.

    Threads and processes may write one gallery at the same time, if one of them holds `alone` and gives each its own
    shards. If two commit the same shard, both write the same files with the same content.
    """

    def __init__(self, root: Path, manifest: GalleryManifest) -> None:
        self._layout = Layout(root)
        self.manifest = manifest

    @staticmethod
    def open(root: Path | str, *, images: str, space: SpaceSpec) -> GalleryWriter:
        """Create a gallery, or open one to continue it. images: the root of the source, see `Source.root`.

        Raises SpaceMismatch if it was embedded in another space. Raises GalleryError if it is a gallery of other
        images, if it is damaged, or if the folder has other content.
        """
        root, manifest = Path(root), GalleryManifest(images=images, space=space)
        if (root / MANIFEST).exists():
            _check_same(root, read_manifest(root), manifest)
        else:
            check_free(root)
            write_sealed(root / MANIFEST, manifest)
        return GalleryWriter(root, manifest)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the gallery's lock, and first remove what a killed job left behind.

        Raises OutputError if another job holds it.
        """
        with only_writer(self._layout.root / LOCK, self._layout.root):
            for folder in (self._layout.root, *self._layout.folders()):
                remove_abandoned(folder)
            counting = self._layout.shards()
            for shard in self._layout.all_ids() - set(counting):
                self.drop(shard)
            yield

    def plan(
        self,
        files: Sequence[ImageFile],
        shard_size: int,
        *,
        prune: bool = False,
        changed: frozenset[ImageFile] = frozenset(),
    ) -> Plan:
        """Return the work that is left until the gallery has these files as they are. Nothing is changed on disk.

        files: sorted by path. shard_size: files per new shard. prune: also remove images that are not in the list.
        changed: files that must be embedded again although they look the same. Raises GalleryError for damaged shards.
        """
        listed = {file.path: file for file in files}
        known: set[str] = set()
        done = missing = 0
        pending, verdicts = [], []
        for shard, record in self._layout.shards().items():
            rejected = self._rejected(shard, record)
            entries = [*table_files(self._layout.accepted_table(shard, record)), *(item.file for item in rejected)]
            known.update(entry.path for entry in entries)
            gone = [entry for entry in entries if entry.path not in listed]
            same = {entry for entry in entries if listed.get(entry.path) == entry and entry not in changed}
            again = sorted({e.path for e in entries} - {e.path for e in same} - {e.path for e in gone})
            if again or (gone and prune):
                removed = frozenset(gone if prune else ())
                pending.append(Shard(tuple(listed[path] for path in again), shard, removed))
            done += len(same)
            missing += 0 if prune else len(gone)
            verdicts += [item for item in rejected if item.file in same]
        rest = [file for file in files if file.path not in known]
        new = [Shard(tuple(rest[start : start + shard_size])) for start in range(0, len(rest), shard_size)]
        return Plan(done, missing, (*pending, *new), tuple(verdicts))

    def commit(self, shard: Shard, embedded: Embedded) -> None:
        """Write a shard, its record last, and remove the one that it replaces.

        embedded: the results for the shard's files. Files that are undone are left for a later plan; if the gallery has
        an older embedding of them, it stays. Raises GalleryError if shapes or numbers are wrong, or if an embedding
        does not have unit length.
        """
        self._check(shard, embedded)
        check_length(embedded.embeddings, "the encoder")
        merged = embedded if shard.replaces is None else self._merged(shard, shard.replaces, embedded)
        name = shard_id(merged.accepted, merged.rejected)
        if (merged.accepted or merged.rejected) and name != shard.replaces:
            self._write(name, merged, shard.replaces)
        if shard.replaces is not None and name != shard.replaces:
            self.drop(shard.replaces)

    def drop(self, shard: str) -> None:
        """Remove a shard, its record first."""
        for path in (self._layout.record(shard), *self._layout.files(shard)):
            path.unlink(missing_ok=True)

    def keep_queries(self, queries: Embeddings) -> None:
        """Store real query embeddings, float32 [Q, D], to tune an approximate index on."""
        path, content = self._layout.root / f"{QUERIES}.npy", _npy(queries)
        record = path.with_suffix(".json")
        if record.exists() and path.exists() and path.read_bytes() == content:
            return
        record.unlink(missing_ok=True)
        write_atomically(path, content)
        write_sealed(record, QueriesRecord(sha256=hashlib.sha256(content).hexdigest()))

    def rejected(self) -> tuple[Rejected, ...]:
        """Return all verdicts in the gallery."""
        shards = self._layout.shards().items()
        return tuple(item for shard, record in shards for item in self._rejected(shard, record))

    def _check(self, shard: Shard, embedded: Embedded) -> None:
        expected = (len(embedded.accepted), *self.manifest.space.item_shape)
        total = len(embedded.accepted) + len(embedded.rejected) + len(embedded.undone)
        if embedded.embeddings.shape != expected or total != len(shard.files):
            raise GalleryError(
                f"shard of {len(shard.files)} files: {len(embedded.accepted)} accepted, {len(embedded.rejected)} "
                f"rejected and {len(embedded.undone)} undone with embeddings of shape "
                f"{list(embedded.embeddings.shape)}, expected {list(expected)}"
            )

    def _merged(self, shard: Shard, older: str, embedded: Embedded) -> Embedded:
        """Return results together with those of the older shard that are still wanted, sorted by path."""
        record = self._layout.shards()[older]
        dealt_with = {file.path for file in embedded.accepted} | {item.file.path for item in embedded.rejected}
        dealt_with |= {file.path for file in shard.removed}
        kept = table_files(self._layout.accepted_table(older, record))
        places = [place for place, file in enumerate(kept) if file.path not in dealt_with]
        old_rows = Gallery(self._layout.root, self.manifest, {older: record}).shard_embeddings(older)
        accepted = [*embedded.accepted, *(kept[place] for place in places)]
        order = sorted(range(len(accepted)), key=lambda position: accepted[position].path)
        rejected = [item for item in self._rejected(older, record) if item.file.path not in dealt_with]
        return Embedded(
            np.concatenate([embedded.embeddings, old_rows[places]])[order],
            tuple(accepted[position] for position in order),
            tuple(sorted((*embedded.rejected, *rejected), key=lambda item: item.file.path)),
        )

    def _write(self, shard: str, content: Embedded, replaces: str | None) -> None:
        rejected = file_table([item.file for item in content.rejected])
        for name in REJECTED_SCHEMA.names[rejected.num_columns :]:
            values = pa.array([getattr(item, name) for item in content.rejected], pa.string())
            rejected = rejected.append_column(name, values)
        write_atomically(self._layout.embeddings(shard), _npy(content.embeddings))
        _write_table(rejected, self._layout.rejected(shard))
        _write_table(file_table(content.accepted), self._layout.metadata(shard))
        files = {str(path.relative_to(self._layout.root)): sha256_of_file(path) for path in self._layout.files(shard)}
        write_sealed(
            self._layout.record(shard),
            ShardRecord(rows=len(content.accepted), rejected=len(content.rejected), replaces=replaces, files=files),
        )

    def _rejected(self, shard: str, record: ShardRecord) -> list[Rejected]:
        table = self._layout.rejected_table(shard, record)
        reasons, digests = table["reason"].to_pylist(), table["sha256"].to_pylist()
        return [Rejected(*item) for item in zip(table_files(table), reasons, digests, strict=True)]


def _check_same(root: Path, found: GalleryManifest, given: GalleryManifest) -> None:
    if found.space.fingerprint != given.space.fingerprint:
        raise SpaceMismatch(
            f"gallery {root} was embedded in space {found.space.fingerprint}, the encoder's space is "
            f"{given.space.fingerprint}; embed into another folder",
            components=found.space.differences(given.space),
        )
    if found.images != given.images:
        raise GalleryError(
            f"gallery {root} is of {found.images}, not of {given.images}; embed into another folder", path=root
        )


def _npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
