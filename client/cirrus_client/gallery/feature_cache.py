"""Store the frozen backbone's outputs for images, so that embedding with a new head opens no image.

    cache/
      cache.json               backbone, preprocessing and tensor of the features; others are refused
      features/00000.npy       float16 [rows, ...], one file per 4,096 images
      features/00000.json      sha256 of that file, and of each row's image; written last, so it marks the commit
      files/00000.parquet      image_path, size, mtime_ns, digest: the content of a file when it was read

Features are keyed by the sha256 of the image file. A file that was moved or touched is read and hashed, but not decoded
or encoded again. A file whose path, size and time are known is not even read.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cirrus_client.bundle import Bundle, TensorSpec
from cirrus_client.errors import BundleError, GalleryError, SpaceMismatch
from cirrus_client.files import atomic_path, sha256_of_file, write_atomically, write_model
from cirrus_client.names import GraphName
from cirrus_client.records import Record, read_record

Features = NDArray[np.float16]
FileKey = tuple[str, int, int]
"""Address of an image, its size in bytes, and its modification time in ns."""

_MANIFEST = "cache.json"
_SHARD_ROWS = 4096
_ENCODE_AGAIN = "and its images are encoded again"


class CacheManifest(Record):
    """`cache.json`: sha256 of the backbone's weights, the preprocessing, and which encoder output is stored."""

    backbone: str
    preprocess: str
    tensor: TensorSpec


class _ShardRecord(Record):
    sha256: str
    digests: tuple[str, ...]


class FeatureCache:
    """The features of one backbone on disk. `flush`, or the end of a `with` block, writes the last rows.

    Threads may share a cache. Only one process may write to it.
    """

    def __init__(self, root: Path, bundle: Bundle) -> None:
        """Open or create the cache of a bundle's backbone.

        Raises SpaceMismatch if the cache is of another backbone or preprocessing, GalleryError if it is damaged or the
        folder has other content, and BundleError if the bundle has no target head over an image encoder.
        """
        self._root = root
        self.manifest = _manifest(bundle)
        self._claim()
        self._lock = threading.Lock()
        self._shards: list[Features] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._digests: dict[FileKey, bytes] = {}
        self._new_rows: dict[bytes, Features] = {}
        self._new_files: dict[FileKey, bytes] = {}
        for path in sorted((root / "features").glob("*.json")):
            self._open_shard(path)
        for path in sorted((root / "files").glob("*.parquet")):
            self._read_files(path)

    def __len__(self) -> int:
        return len(self._places) + len(self._new_rows)

    def get(self, digest: str) -> Features | None:
        """Return the features of an image, or None if they are not cached. digest: the file's sha256 in hexadecimal."""
        key = bytes.fromhex(digest)
        with self._lock:
            if key in self._new_rows:
                return self._new_rows[key]
            place = self._places.get(key)
        return None if place is None else self._shards[place[0]][place[1]]

    def put(self, digest: str, features: Features) -> None:
        """Add the features of an image. They are written in groups of 4,096."""
        key = bytes.fromhex(digest)
        with self._lock:
            if key not in self._places:
                self._new_rows[key] = features
            if len(self._new_rows) >= _SHARD_ROWS:
                self._write_rows()

    def digest_of(self, file: FileKey) -> str | None:
        """Return the sha256 of a file that is unchanged since it was read, or None if it is new or has changed."""
        digest = self._digests.get(file)
        return None if digest is None else digest.hex()

    def remember(self, file: FileKey, digest: str) -> None:
        """Remember the sha256 of a file."""
        key = bytes.fromhex(digest)
        with self._lock:
            if self._digests.get(file) != key:
                self._digests[file] = self._new_files[file] = key

    def flush(self) -> None:
        """Write all rows and files that are not written yet."""
        with self._lock:
            if self._new_rows:
                self._write_rows()
            if self._new_files:
                self._write_files()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def _write_rows(self) -> None:
        path = self._next("features", "npy")
        content = io.BytesIO()
        np.save(content, np.stack(list(self._new_rows.values())))
        write_atomically(path, content.getvalue())
        record = _ShardRecord(sha256=sha256_of_file(path), digests=tuple(key.hex() for key in self._new_rows))
        write_atomically(path.with_suffix(".json"), record.model_dump_json().encode())
        self._add_shard(path, record.digests)
        self._new_rows = {}

    def _write_files(self) -> None:
        files = list(self._new_files)
        table = pa.table(
            {
                "image_path": [file[0] for file in files],
                "size": [file[1] for file in files],
                "mtime_ns": [file[2] for file in files],
                "digest": [digest.hex() for digest in self._new_files.values()],
            }
        )
        with atomic_path(self._next("files", "parquet")) as path:
            pq.write_table(table, path)
        self._new_files = {}

    def _claim(self) -> None:
        path = self._root / _MANIFEST
        if path.exists():
            found = read_record(
                path, CacheManifest, raises=GalleryError, missing=f"{path} is gone", way_out="name another --cache"
            )
            if found != self.manifest:
                names = CacheManifest.model_fields
                differing = tuple(name for name in names if getattr(found, name) != getattr(self.manifest, name))
                raise SpaceMismatch(
                    f"feature cache {self._root} differs from the bundle in {', '.join(differing)}: name another "
                    "--cache",
                    components=differing,
                )
        elif self._root.exists() and any(self._root.iterdir()):
            raise GalleryError(
                f"{self._root} is not empty and not a feature cache; name another --cache", path=self._root
            )
        write_model(path, self.manifest)

    def _open_shard(self, path: Path) -> None:
        way_out = f"remove {path} and the .npy file beside it, {_ENCODE_AGAIN}"
        record = read_record(path, _ShardRecord, raises=GalleryError, missing=f"{path} is gone", way_out=way_out)
        rows = path.with_suffix(".npy")
        if not rows.is_file() or sha256_of_file(rows) != record.sha256:
            raise GalleryError(f"{rows} is missing or corrupted; {way_out}", path=rows)
        self._add_shard(rows, record.digests)

    def _add_shard(self, path: Path, digests: tuple[str, ...]) -> None:
        number = len(self._shards)
        self._shards.append(np.load(path, mmap_mode="r"))
        self._places |= {bytes.fromhex(digest): (number, row) for row, digest in enumerate(digests)}

    def _read_files(self, path: Path) -> None:
        try:
            columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
            keys = zip(columns["image_path"], columns["size"], columns["mtime_ns"], strict=True)
            self._digests |= dict(zip(keys, map(bytes.fromhex, columns["digest"]), strict=True))
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise GalleryError(
                f"{path} can't be read ({error}); remove it, and its images are read again", path=path
            ) from None

    def _next(self, folder: str, suffix: str) -> Path:
        (self._root / folder).mkdir(exist_ok=True)
        numbers = [int(path.stem) for path in (self._root / folder).glob(f"*.{suffix}")]
        return self._root / folder / f"{max(numbers, default=-1) + 1:05d}.{suffix}"


def _manifest(bundle: Bundle) -> CacheManifest:
    spec = bundle.spec
    components = spec.space.components
    graphs = {GraphName.VISION_ENCODER, GraphName.TARGET_HEAD}
    if not graphs <= set(spec.graphs) or len(spec.graphs[GraphName.TARGET_HEAD].inputs) != 1:
        raise BundleError(
            f"bundle {bundle.root}: it has no target head that runs on an image encoder alone, so nothing can be "
            "cached: leave out --cache",
            path=bundle.root,
        )
    return CacheManifest(
        backbone=components["backbone"],
        preprocess=components["preprocess"],
        tensor=spec.graphs[GraphName.TARGET_HEAD].inputs[0],
    )
