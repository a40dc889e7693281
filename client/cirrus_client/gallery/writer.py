"""Plan and write the shards of a gallery."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    GalleryManifest,
    Layout,
    PartRecord,
    QueriesRecord,
    ShardRecord,
    check_free,
    read_manifest,
    shard_id,
)
from cirrus_client.gallery.plan import KnownShard, Plan, Shard, plan_shards
from cirrus_client.gallery.rows import accepted_table, files_of, rejected_of, rejected_table
from cirrus_client.gallery.source import ImageFile
from cirrus_client.gallery.store import Gallery, check_length
from cirrus_client.gallery.stream import Embedded, Rejected
from cirrus_client.outputs import only_writer
from cirrus_client.records import read_record, write_sealed


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
        images, if it is damaged, or if the folder has other content. A gallery without an embedding, as a first job
        leaves it that failed early, is begun again.
        """
        root, manifest = Path(root), GalleryManifest(images=images, space=space)
        writer = GalleryWriter(root, manifest)
        if (root / MANIFEST).exists():
            if _identity(read_manifest(root)) != _identity(manifest):
                writer._begin_again()
        else:
            check_free(root)
            write_sealed(root / MANIFEST, manifest)
        return writer

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the gallery's lock, and first remove what a killed job left behind.

        Raises OutputError if another job holds it, and what `open` raises if another job has written it since.
        """
        with only_writer(self._layout.root / LOCK, self._layout.root):
            _check_same(self._layout.root, read_manifest(self._layout.root), self.manifest)
            for folder in (self._layout.root, self._layout.part("").parent, *self._layout.folders()):
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

        files: sorted by path; of a source without parts. shard_size: files per new shard. prune: also remove images
        that are not in the list. changed: files to do again though their path and state are known.
        """
        return plan_shards(files, self.known([""])[""], shard_size, prune=prune, changed=changed)

    def known(self, parts: Iterable[str]) -> dict[str, tuple[KnownShard, ...]]:
        """Return what is known of the files in the shards of parts of the source."""
        known: dict[str, list[KnownShard]] = {part: [] for part in parts}
        for shard, record in self._layout.shards().items():
            if record.part in known:
                known[record.part].append(self._known(shard, record))
        return {part: tuple(shards) for part, shards in known.items()}

    def digests(self) -> Iterator[tuple[str, list[str]]]:
        """Yield every shard's id, and the sha256 of the images of its rows."""
        for shard, record in self._layout.shards().items():
            yield shard, self._layout.accepted_table(shard, record)["sha256"].to_pylist()

    def commit(self, shard: Shard, embedded: Embedded) -> str | None:
        """Write a shard, its record last, and remove the one that it replaces. Return its id; None if nothing is in it.

        embedded: the results for the shard's files. Files that are undone are left for a later plan; if the gallery has
        an older embedding of them, it stays. Raises GalleryError if shapes or numbers are wrong, or if an embedding
        does not have unit length.
        """
        self._check(shard, embedded)
        check_length(embedded.embeddings, lambda row: f"the encoder's embedding of {embedded.accepted[row].path}")
        merged = embedded if shard.replaces is None else self._merged(shard, shard.replaces, embedded)
        name = shard_id(merged.accepted, merged.rejected)
        if (merged.accepted or merged.rejected) and name != shard.replaces:
            self._write(name, merged, shard)
        if shard.replaces is not None and name != shard.replaces:
            self.drop(shard.replaces)
        return name if merged.accepted or merged.rejected else None

    def drop(self, shard: str) -> None:
        """Remove a shard, its record first."""
        for path in (self._layout.record(shard), *self._layout.files(shard)):
            path.unlink(missing_ok=True)

    def parts(self) -> Mapping[str, int]:
        """Return the parts of the source from which there are shards, and their numbers of images."""
        images: dict[str, int] = {}
        for record in self._layout.shards().values():
            images[record.part] = images.get(record.part, 0) + record.rows
        return images

    def not_done(self, parts: Sequence[ImageFile], *, prune: bool = False) -> tuple[list[ImageFile], int]:
        """Return the parts to open, and how many images of the others are no longer in their parts.

        A part is opened if it is new or has changed, if an image of it was left undone or a shard of it is gone, or if
        there is something to prune.
        """
        shards, found = self._shards_of_parts(), {part.path: self._part_record(part.path) for part in parts}
        missing = {path: record.missing for path, record in found.items() if record is not None}
        done = {
            part.path
            for part in parts
            if part.path in missing
            and not (prune and missing[part.path])
            and found[part.path] == _part_record(part, shards.get(part.path, ()), missing[part.path])
        }
        return [part for part in parts if part.path not in done], sum(missing[path] for path in done)

    def note_done(self, part: ImageFile, *, shards: Collection[str], missing: int) -> None:
        """Note that all images of a part were dealt with, so that it need not be opened again until it changes.

        shards: the ids of all shards of the part. missing: number of images in them that the part no longer has.
        """
        write_sealed(self._layout.part(part.path), _part_record(part, shards, missing))

    def drop_part(self, part: str) -> None:
        """Remove all shards of a part, and that it was done."""
        self._layout.part(part).unlink(missing_ok=True)
        for shard, record in self._layout.shards().items():
            if record.part == part:
                self.drop(shard)

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
        return tuple(
            item for shard, record in shards for item in rejected_of(self._layout.rejected_table(shard, record))
        )

    def _begin_again(self) -> None:
        """Give a gallery without an embedding this writer's manifest, and remove what it had of the one before.

        Raises SpaceMismatch or GalleryError if there is an embedding, OutputError if another job writes it.
        """
        root = self._layout.root
        with only_writer(root / LOCK, root):
            if any(record.rows for record in self._layout.shards().values()):
                _check_same(root, read_manifest(root), self.manifest)
            for shard in self._layout.all_ids():
                self.drop(shard)
            for path in (*self._layout.part("").parent.glob("*"), *root.glob(f"{QUERIES}.*")):
                path.unlink()
            write_sealed(root / MANIFEST, self.manifest)

    def _shards_of_parts(self) -> dict[str, frozenset[str]]:
        shards: dict[str, set[str]] = {}
        for shard, record in self._layout.shards().items():
            shards.setdefault(record.part, set()).add(shard)
        return {part: frozenset(ids) for part, ids in shards.items()}

    def _part_record(self, part: str) -> PartRecord | None:
        path = self._layout.part(part)
        if not path.exists():
            return None
        way_out = f"remove {path}, and the part is looked at again"
        missing = f"{path} is gone"
        return read_record(path, PartRecord, raises=GalleryError, missing=missing, way_out=way_out, sealed=True)

    def _known(self, shard: str, record: ShardRecord) -> KnownShard:
        accepted = files_of(self._layout.accepted_table(shard, record))
        return KnownShard(shard, tuple(accepted), tuple(rejected_of(self._layout.rejected_table(shard, record))))

    def _check(self, shard: Shard, embedded: Embedded) -> None:
        expected = (len(embedded.accepted), *self.manifest.space.item_shape)
        total = len(embedded.accepted) + len(embedded.rejected) + len(embedded.undone)
        if (
            embedded.embeddings.shape != expected
            or total != len(shard.files)
            or len(_digests(embedded)) != len(embedded.accepted)
        ):
            raise GalleryError(
                f"shard of {len(shard.files)} files: {len(embedded.accepted)} accepted, {len(embedded.rejected)} "
                f"rejected and {len(embedded.undone)} undone with {len(embedded.digests)} digests and embeddings of "
                f"shape {list(embedded.embeddings.shape)}, expected {list(expected)}"
            )

    def _merged(self, shard: Shard, older: str, embedded: Embedded) -> Embedded:
        """Return results together with those of the older shard that are still wanted, sorted by path."""
        record = self._layout.shards()[older]
        known = self._known(older, record)
        dealt_with = {file.path for file in embedded.accepted} | {item.file.path for item in embedded.rejected}
        dealt_with |= {file.path for file in shard.removed}
        places = [place for place, file in enumerate(known.accepted) if file.path not in dealt_with]
        old_rows = Gallery(self._layout.root, self.manifest, {older: record}).shard_embeddings(older)
        old_digests = self._layout.accepted_table(older, record)["sha256"].to_pylist()
        accepted = [*embedded.accepted, *(known.accepted[place] for place in places)]
        digests = [*_digests(embedded), *(old_digests[place] for place in places)]
        order = sorted(range(len(accepted)), key=lambda position: accepted[position].path)
        rejected = [item for item in known.rejected if item.file.path not in dealt_with]
        return Embedded(
            np.concatenate([embedded.embeddings, old_rows[places]])[order],
            tuple(accepted[position] for position in order),
            tuple(sorted((*embedded.rejected, *rejected), key=lambda item: item.file.path)),
            digests=tuple(digests[position] for position in order),
        )

    def _write(self, name: str, content: Embedded, shard: Shard) -> None:
        write_atomically(self._layout.embeddings(name), _npy(content.embeddings))
        _write_table(rejected_table(content.rejected), self._layout.rejected(name))
        _write_table(accepted_table(content.accepted, _digests(content)), self._layout.metadata(name))
        files = {str(path.relative_to(self._layout.root)): sha256_of_file(path) for path in self._layout.files(name)}
        record = ShardRecord(
            rows=len(content.accepted),
            rejected=len(content.rejected),
            replaces=shard.replaces,
            part=shard.part,
            files=files,
        )
        write_sealed(self._layout.record(name), record)


def _identity(manifest: GalleryManifest) -> tuple[str, str]:
    return manifest.space.fingerprint, manifest.images


def _check_same(root: Path, found: GalleryManifest, given: GalleryManifest) -> None:
    if found.space.fingerprint != given.space.fingerprint:
        raise SpaceMismatch(
            f"gallery {root} was embedded in space {found.space.fingerprint}, the encoder's space is "
            f"{given.space.fingerprint}; they differ in {found.space.differences_in_words(given.space)}: embed into "
            "another folder",
            components=found.space.differences(given.space),
        )
    if found.images != given.images:
        raise GalleryError(
            f"gallery {root} is of {found.images}, not of {given.images}; embed into another folder", path=root
        )


def _part_record(part: ImageFile, shards: Collection[str], missing: int) -> PartRecord:
    return PartRecord(
        path=part.path,
        size=part.size,
        mtime_ns=part.mtime_ns,
        etag=part.etag,
        shards=tuple(sorted(shards)),
        missing=missing,
    )


def _digests(embedded: Embedded) -> tuple[str, ...]:
    """Return the sha256 of every accepted image, empty where they were not given."""
    return embedded.digests or ("",) * len(embedded.accepted)


def _npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
