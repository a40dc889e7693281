"""Embed a folder of images: in parallel, resumable after a crash, broken files listed and skipped.

    gallery/
      img_emb/img_emb_0000.npy            float32 [rows, D], clip-retrieval's layout (autofaiss reads it);
                                          [rows, V, D] where an item has V vectors
      metadata/metadata_0000.parquet      image_path, size, mtime_ns: one row an embedding, in the same order
      rejected/rejected_0000.parquet      image_path, size, mtime_ns, reason
      gallery.json                        the space, written first; another space is refused
      bundle/                             that of a new head, where it was exported for this gallery

A shard is a slice of the sorted file list. Its metadata file is written last and is its commit mark, so a job that is
killed at any moment resumes with the first shard that lacks one: nothing is lost or doubled. When the folder has
changed, shards with changed or vanished files are embedded again, and new files form new shards.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from tqdm import tqdm

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.errors import GalleryError, SpaceMismatch
from cirrus_client.files import atomic_path, write_atomically, write_model
from cirrus_client.gallery.source import ImageFile, Rejected, image_file, list_images
from cirrus_client.gallery.stream import EmbedStream
from cirrus_client.records import Record

MANIFEST = "gallery.json"
BUNDLE = "bundle"
log = logging.getLogger(__name__)


class GalleryManifest(Record):
    """`gallery.json`: where the images are, and the space of their embeddings."""

    images: str
    space: SpaceSpec


@dataclass(frozen=True)
class GallerySummary:
    """What a gallery holds after a run, and how much of it this run embedded."""

    embedded: int
    rejected: tuple[Rejected, ...]
    new: int


def embed_gallery(
    images: Path,
    out: Path,
    encoder: Encoder,
    *,
    only: Sequence[str] | None = None,
    prepare: Callable[[Path], Any] | None = None,
    batch_size: int = 32,
    shard_size: int = 10_000,
    workers: int | None = None,
    show_progress: bool = True,
) -> GallerySummary:
    """Embed every image file under a folder into `out`, or resume doing so.

    only: paths below the folder, where not all of its images are meant. prepare: the encoder's own way from a file to
    what `encode_prepared` takes; None reads the file and calls `Encoder.prepare`. workers: decoding threads; None takes
    the machine's cores. Raises GalleryError if the folder has no image file or `out` is not a gallery of it, and
    SpaceMismatch if `out` was embedded in another space.
    """
    files = list_images(images) if only is None else [image_file(images, path) for path in sorted(set(only))]
    _claim(out, GalleryManifest(images=str(images.resolve()), space=encoder.space))
    store = _Shards(out)
    kept, pending = store.plan(files, shard_size)
    todo = sum(len(shard) for _, shard in pending)
    if kept:
        log.info("resuming: %d of %d files are done", len(files) - todo, len(files))
    with (
        EmbedStream(images, encoder, prepare=prepare, batch_size=batch_size, workers=workers) as stream,
        tqdm(total=todo, desc="embedding", unit="image", disable=not show_progress) as progress,
    ):
        for number, shard in pending:
            store.commit(number, *stream.embed(shard, progress.update))
    return store.summary(new=todo)


@dataclass(frozen=True)
class Gallery:
    """An embedded gallery: row i of `embeddings` is the image `paths[i]` under `images`."""

    images: Path
    space: SpaceSpec
    embeddings: Embeddings
    paths: tuple[str, ...]


def read_gallery(root: Path) -> Gallery:
    """Read an embedded gallery. Raises GalleryError if it is missing, empty or inconsistent."""
    manifest = _read_manifest(root)
    shards = _Shards(root)
    embeddings: list[Embeddings] = []
    paths: list[str] = []
    for number in shards.numbers():
        files = _read_files(shards.metadata(number))
        rows = np.load(shards.embeddings(number))
        if rows.shape != (len(files), *manifest.space.item_shape):
            raise GalleryError(
                f"gallery {root}: {shards.embeddings(number).name} has shape {list(rows.shape)}, its metadata has "
                f"{len(files)} rows of shape {list(manifest.space.item_shape)}; remove both files and embed again"
            )
        embeddings.append(rows)
        paths += [file.path for file in files]
    if not paths:
        raise GalleryError(f"gallery {root}: holds no embedding; run `cirrus embed` to the end")
    return Gallery(Path(manifest.images), manifest.space, np.concatenate(embeddings), tuple(paths))


class _Shards:
    """The files of a gallery, by shard number."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def embeddings(self, number: int) -> Path:
        return self.root / "img_emb" / f"img_emb_{number:04d}.npy"

    def metadata(self, number: int) -> Path:
        return self.root / "metadata" / f"metadata_{number:04d}.parquet"

    def rejected(self, number: int) -> Path:
        return self.root / "rejected" / f"rejected_{number:04d}.parquet"

    def numbers(self) -> list[int]:
        """Numbers of the shards that are complete."""
        return sorted(int(path.stem.rsplit("_", 1)[1]) for path in self.root.glob("metadata/metadata_*.parquet"))

    def files(self, number: int) -> list[ImageFile]:
        """Every file that a complete shard has dealt with, rejected ones included."""
        return [*_read_files(self.metadata(number)), *_read_files(self.rejected(number))]

    def plan(self, files: Sequence[ImageFile], shard_size: int) -> tuple[list[int], list[tuple[int, list[ImageFile]]]]:
        """Return the shards to keep, and those to embed with their files.

        A shard that holds a file which has changed or vanished is dropped whole; its other files are embedded again.
        """
        present = set(files)
        kept = []
        done: set[ImageFile] = set()
        for number in self.numbers():
            of_shard = self.files(number)
            if present.issuperset(of_shard):
                kept.append(number)
                done.update(of_shard)
            else:
                self._drop(number)
        rest = [file for file in files if file not in done]
        first = max(kept, default=-1) + 1
        return kept, [
            (first + position, rest[start : start + shard_size])
            for position, start in enumerate(range(0, len(rest), shard_size))
        ]

    def commit(
        self, number: int, embeddings: Embeddings, accepted: Sequence[ImageFile], rejected: Sequence[Rejected]
    ) -> None:
        """Write a shard, its metadata last: that is its commit mark."""
        content = io.BytesIO()
        np.save(content, embeddings)
        write_atomically(self.embeddings(number), content.getvalue())
        reasons = pa.array([item.reason for item in rejected], pa.string())
        _write_table(_table(item.file for item in rejected).append_column("reason", reasons), self.rejected(number))
        _write_table(_table(accepted), self.metadata(number))

    def summary(self, *, new: int) -> GallerySummary:
        embedded = 0
        rejected: list[Rejected] = []
        for number in self.numbers():
            embedded += pq.read_metadata(self.metadata(number)).num_rows
            rows = pq.read_table(self.rejected(number)).to_pylist()
            rejected += [Rejected(_file(row), row["reason"]) for row in rows]
        return GallerySummary(embedded=embedded, rejected=tuple(rejected), new=new)

    def _drop(self, number: int) -> None:
        for path in (self.metadata(number), self.rejected(number), self.embeddings(number)):
            path.unlink(missing_ok=True)


def _claim(out: Path, manifest: GalleryManifest) -> None:
    if (out / MANIFEST).exists():
        found = _read_manifest(out)
        if found.space.fingerprint != manifest.space.fingerprint:
            raise SpaceMismatch(
                f"gallery {out} was embedded in space {found.space.fingerprint}, the encoder's space is "
                f"{manifest.space.fingerprint}; embed into another folder"
            )
        if found.images != manifest.images:
            raise GalleryError(
                f"gallery {out} is of {found.images}, not of {manifest.images}; embed into another folder"
            )
    check_free(out)
    write_model(out / MANIFEST, manifest)


def check_free(out: Path) -> None:
    """Raise GalleryError if a folder holds something that is no gallery; a bundle and hidden files may be there."""
    strangers = [path for path in out.glob("[!.]*") if path.name != BUNDLE]
    if out.is_file() or (strangers and not (out / MANIFEST).exists()):
        raise GalleryError(f"{out} is not empty and not a gallery; embed into another folder")


def _read_manifest(root: Path) -> GalleryManifest:
    try:
        return GalleryManifest.model_validate_json((root / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise GalleryError(f"{root} is not a gallery: it has no {MANIFEST}; make one with `cirrus embed`") from None
    except ValidationError as error:
        raise GalleryError(f"gallery {root}: {MANIFEST} can't be read: {error}") from None


def _table(files: Iterable[ImageFile]) -> pa.Table:
    listed = list(files)
    return pa.table(
        {
            "image_path": pa.array([file.path for file in listed], pa.string()),
            "size": pa.array([file.size for file in listed], pa.int64()),
            "mtime_ns": pa.array([file.mtime_ns for file in listed], pa.int64()),
        }
    )


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def _read_files(path: Path) -> list[ImageFile]:
    try:
        return [_file(row) for row in pq.read_table(path).to_pylist()]
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise GalleryError(f"{path}: can't be read ({error}); remove this shard's files and embed again") from None


def _file(row: dict[str, Any]) -> ImageFile:
    return ImageFile(row["image_path"], row["size"], row["mtime_ns"])
