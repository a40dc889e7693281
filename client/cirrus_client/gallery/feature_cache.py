"""Store the frozen backbone's outputs for images, so that embedding with a new head opens no image.

    cache/
      cache.json               what the features are made with; a cache of other ones is refused
      features/00000.npy       float16 [rows, ...], one file per 4,096 images, or per 256 MiB of wide features
      features/00000.json      sha256 of that file, and of each row's image; written last, so it marks the commit
      files/00000.parquet      image_path, size, mtime_ns, etag, digest: the content of a file when it was read
      files/00000.json         sha256 of that file; written last
      .lock                    held by the job that uses the cache

Features are keyed by the sha256 of the image file. A file that was moved or touched is read and hashed, but not decoded
or encoded again. A file whose path, size and time are known is not even read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cirrus_client.bundle import Bundle, TensorSpec
from cirrus_client.errors import BundleError, GalleryError, SpaceMismatch
from cirrus_client.files import atomic_path, remove_abandoned, sha256_of_file
from cirrus_client.names import GraphName
from cirrus_client.outputs import only_writer
from cirrus_client.parquet import read_parquet
from cirrus_client.records import Record, read_record, write_sealed

Features = NDArray[np.float16]


class FileKey(NamedTuple):
    """Address of an image, its size in bytes, its modification time in ns, and the etag of its store."""

    image_path: str
    size: int
    mtime_ns: int
    etag: str


_MANIFEST, _LOCK = "cache.json", ".lock"
_FEATURES, _FILES = "features", "files"
_SHARD_ROWS, _SHARD_BYTES = 4096, 256 * 2**20
_OPEN = 64
"""Files of features that are open at a time: each takes a descriptor, of which a process has 1,024 by default."""

_FILE_SCHEMA = pa.schema(
    {
        **{"image_path": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64(), "etag": pa.string()},
        "digest": pa.string(),
    }
)


class CacheManifest(Record):
    """`cache.json`: sha256 of the backbone's weights, what decides its output beside them, and which output is stored.

    activation, pooling: the components of the space that have these names; None if the space does not name them.
    """

    format: Literal[4] = 4
    backbone: str
    activation: str | None
    pooling: str | None
    preprocess: str
    tensor: TensorSpec


class _FeaturesRecord(Record):
    sha256: str
    digests: tuple[str, ...]


class _FilesRecord(Record):
    sha256: str


@dataclass(eq=False)
class _Shard:
    """A file of features. It is compared with its checksum when it is first read."""

    path: Path
    record: _FeaturesRecord
    row_shape: tuple[int, ...]
    is_checked: bool = False

    def opened(self) -> Features:
        """Return the rows, memory-mapped."""
        way_out = f"remove {self.path.with_suffix('.json')}, and its images are encoded again"
        if not self.path.is_file() or not (self.is_checked or sha256_of_file(self.path) == self.record.sha256):
            raise GalleryError(f"{self.path} is missing or corrupted; {way_out}", path=self.path)
        try:
            rows: Features = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise GalleryError(f"{self.path} can't be read ({error}); {way_out}", path=self.path) from None
        expected = (len(self.record.digests), *self.row_shape)
        if rows.shape != expected or rows.dtype != np.float16:
            raise GalleryError(
                f"{self.path} has {rows.dtype} {list(rows.shape)}, expected float16 {list(expected)}; {way_out}",
                path=self.path,
            )
        self.is_checked = True
        return rows


class FeatureCache:
    """The features of one backbone on disk. `close`, or the end of a `with` block, writes the last rows.

    Threads may share a cache. Only one cache of a folder may be open at a time, over all processes.
    """

    def __init__(self, root: Path | str, bundle: Bundle) -> None:
        """Open or create the cache of a bundle's backbone.

        Raises SpaceMismatch if the cache is of another backbone, another activation or pooling of it, or another
        preprocessing; GalleryError if it is damaged or the folder has other content, OutputError if another process
        uses it, and BundleError if the bundle has no target head over an image encoder.
        """
        root = self._root = Path(root)
        self.manifest = _manifest(bundle)
        self._lock = threading.Lock()
        self._shards: list[_Shard] = []
        self._opened = lru_cache(_OPEN)(_Shard.opened)
        self._places: dict[bytes, tuple[int, int]] = {}
        self._digests: dict[FileKey, bytes] = {}
        self._new_rows: dict[bytes, Features] = {}
        self._new_files: dict[FileKey, bytes] = {}
        with ExitStack() as held:
            _check_free(root)
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_writer(root / _LOCK, root))
            self._claim()
            for path in sorted((root / _FEATURES).glob("*.json")):
                self._open_shard(path)
            for path in sorted((root / _FILES).glob("*.json")):
                self._read_files(path)
            self._held = held.pop_all()

    def __len__(self) -> int:
        return len(self._places) + len(self._new_rows)

    def get(self, digest: str) -> Features | None:
        """Return the features of an image, or None if they are not cached. digest: the file's sha256 in hexadecimal.

        Raises GalleryError if the file that they are in is damaged.
        """
        key = bytes.fromhex(digest)
        with self._lock:
            if key in self._new_rows:
                return self._new_rows[key]
            place = self._places.get(key)
            return None if place is None else self._opened(self._shards[place[0]])[place[1]]

    def put(self, digest: str, features: Features) -> None:
        """Add the features of an image. They are written in groups of 4,096, or of 256 MiB if that is less."""
        key = bytes.fromhex(digest)
        with self._lock:
            if key not in self._places:
                self._new_rows[key] = features
            if len(self._new_rows) >= _rows_of_a_file(self.manifest.tensor):
                self._write()

    def put_all(self, rows: Mapping[str, Features]) -> None:
        """Add the features of several images, by the sha256 of their files. See `put`."""
        for digest, features in rows.items():
            self.put(digest, features)

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
            self._write()

    def close(self) -> None:
        """Write what is not written yet, and let other processes use the cache."""
        with self._held:
            self.flush()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        if self._new_rows:
            self._write_rows()
        if self._new_files:
            self._write_files()

    def _write_rows(self) -> None:
        path = self._next(_FEATURES, "npy")
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(list(self._new_rows.values())))
        record = _FeaturesRecord(sha256=sha256_of_file(path), digests=tuple(key.hex() for key in self._new_rows))
        write_sealed(path.with_suffix(".json"), record)
        self._add_shard(path, record)
        self._new_rows = {}

    def _write_files(self) -> None:
        rows = [(*file, digest.hex()) for file, digest in self._new_files.items()]
        columns = dict(zip(_FILE_SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True))
        path = self._next(_FILES, "parquet")
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns, _FILE_SCHEMA), temporary)
        write_sealed(path.with_suffix(".json"), _FilesRecord(sha256=sha256_of_file(path)))
        self._new_files = {}

    def _claim(self) -> None:
        """Write or compare the manifest, and remove what a killed job left behind."""
        for folder in (self._root, self._root / _FEATURES, self._root / _FILES):
            remove_abandoned(folder)
        path = self._root / _MANIFEST
        if not path.exists():
            write_sealed(path, self.manifest)
            return
        found = read_record(
            path,
            CacheManifest,
            raises=GalleryError,
            missing=f"{path} is gone",
            way_out="name another --cache",
            sealed=True,
        )
        if found != self.manifest:
            names = CacheManifest.model_fields
            differing = tuple(name for name in names if getattr(found, name) != getattr(self.manifest, name))
            raise SpaceMismatch(
                f"feature cache {self._root} differs from the bundle in {', '.join(differing)}: name another --cache",
                components=differing,
            )

    def _open_shard(self, path: Path) -> None:
        record = read_record(
            path,
            _FeaturesRecord,
            raises=GalleryError,
            missing=f"{path} is gone",
            way_out=f"remove {path}, and its images are encoded again",
            sealed=True,
        )
        self._add_shard(path.with_suffix(".npy"), record)

    def _add_shard(self, path: Path, record: _FeaturesRecord) -> None:
        number = len(self._shards)
        self._shards.append(_Shard(path, record, self.manifest.tensor.shape))
        self._places |= {bytes.fromhex(digest): (number, row) for row, digest in enumerate(record.digests)}

    def _read_files(self, path: Path) -> None:
        way_out = f"remove {path}, and its images are read again"
        record = read_record(
            path, _FilesRecord, raises=GalleryError, missing=f"{path} is gone", way_out=way_out, sealed=True
        )
        table_file = path.with_suffix(".parquet")
        if not table_file.is_file() or sha256_of_file(table_file) != record.sha256:
            raise GalleryError(f"{table_file} is missing or corrupted; {way_out}", path=table_file)
        table = read_parquet(table_file, schema=_FILE_SCHEMA, raises=GalleryError, way_out=way_out)
        *key, digests = (table[name].to_pylist() for name in _FILE_SCHEMA.names)
        self._digests |= dict(zip(zip(*key, strict=True), map(bytes.fromhex, digests), strict=True))

    def _next(self, folder: str, suffix: str) -> Path:
        """Return the path of the next file that a record may name. A killed job's file without a record is replaced."""
        numbers = [int(path.stem) for path in (self._root / folder).glob("*.json")]
        return self._root / folder / f"{max(numbers, default=-1) + 1:05d}.{suffix}"


def _rows_of_a_file(tensor: TensorSpec) -> int:
    return max(1, min(_SHARD_ROWS, _SHARD_BYTES // (prod(tensor.shape) * np.dtype(np.float16).itemsize)))


def _check_free(root: Path) -> None:
    """Raise GalleryError if a folder has other content than a cache and hidden files."""
    strangers = root.is_file() or any(root.glob("[!.]*"))
    if strangers and not (root / _MANIFEST).exists():
        raise GalleryError(f"{root} is not empty and not a feature cache; name another --cache", path=root)


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
        activation=components.get("activation"),
        pooling=components.get("pooling"),
        preprocess=components["preprocess"],
        tensor=spec.graphs[GraphName.TARGET_HEAD].inputs[0],
    )
