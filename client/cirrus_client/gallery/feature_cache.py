"""The frozen backbone's outputs for images, kept: a new head over a cached gallery opens no image.

    cache/
      cache.json               the backbone, preprocessing and tensor that the features are of; others are refused
      features/00000.npy       float16 [rows, ...], appended to in shards
      features/00000.json      sha256 of that file, and of each row's image; written last, it is the shard's commit mark
      files/00000.parquet      image_path, size, mtime_ns, digest: which image a file was when it was read

Features are keyed by the content of an image, so a file that was moved or touched is read and hashed, but not decoded
or encoded again; one that looks as it did is not even read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from cirrus_client.bundle import Bundle, SpaceSpec, TensorSpec
from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.protocol import Embeddings, ImageInput, image_bytes, prepare_all
from cirrus_client.engines import EngineName
from cirrus_client.errors import BundleError, GalleryError, SpaceMismatch
from cirrus_client.files import atomic_path, sha256_of_file, write_atomically, write_model
from cirrus_client.image.preprocess import Decoding
from cirrus_client.records import Record

Features = NDArray[np.float16]
FileKey = tuple[str, int, int]
"""Absolute path, size and modification time in ns."""

_MANIFEST = "cache.json"
_SHARD_ROWS = 4096
_ENCODER, _HEAD = "vision_encoder", "target_head"


class CacheManifest(Record):
    """`cache.json`: sha256 of the backbone's weights, the preprocessing, and which of the encoder's outputs is kept."""

    backbone: str
    preprocess: str
    tensor: TensorSpec


class _Shard(Record):
    sha256: str
    digests: tuple[str, ...]


class FeatureCache:
    """Features on disk, of one backbone. Leave its `with` block, or call `flush`, to write the last rows."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        """Open or create the cache of a bundle's backbone.

        Raises SpaceMismatch if the cache is of another backbone, GalleryError if it is damaged or something else, and
        BundleError if the bundle's targets are no head over an encoder.
        """
        self._root = root
        self.manifest = _manifest(bundle)
        self._claim()
        self._rows: dict[str, Features] = {}
        self._digests: dict[FileKey, str] = {}
        self._new_rows: list[tuple[str, Features]] = []
        self._new_files: list[tuple[FileKey, str]] = []
        for path in sorted((root / "features").glob("*.json")):
            self._load(path)
        for path in sorted((root / "files").glob("*.parquet")):
            for row in pq.read_table(path).to_pylist():
                self._digests[row["image_path"], row["size"], row["mtime_ns"]] = row["digest"]

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, digest: str) -> Features | None:
        """Return the features of an image's content, or None."""
        return self._rows.get(digest)

    def put(self, digest: str, features: Features) -> None:
        """Keep an image's features; every 4,096 of them are written."""
        if digest not in self._rows:
            self._rows[digest] = features
            self._new_rows.append((digest, features))
            if len(self._new_rows) >= _SHARD_ROWS:
                self.flush()

    def digest_of(self, file: FileKey) -> str | None:
        """Return the content's sha256 of a file that looks as it did when it was read, or None."""
        return self._digests.get(file)

    def remember(self, file: FileKey, digest: str) -> None:
        """Keep which content a file has."""
        if self._digests.get(file) != digest:
            self._digests[file] = digest
            self._new_files.append((file, digest))

    def flush(self) -> None:
        """Write what is new."""
        if self._new_rows:
            path = self._next("features", "npy")
            content = io.BytesIO()
            np.save(content, np.stack([row for _, row in self._new_rows]))
            write_atomically(path, content.getvalue())
            shard = _Shard(sha256=sha256_of_file(path), digests=tuple(digest for digest, _ in self._new_rows))
            write_atomically(path.with_suffix(".json"), shard.model_dump_json().encode())
            self._new_rows = []
        if self._new_files:
            table = pa.table(
                {
                    "image_path": [file[0] for file, _ in self._new_files],
                    "size": [file[1] for file, _ in self._new_files],
                    "mtime_ns": [file[2] for file, _ in self._new_files],
                    "digest": [digest for _, digest in self._new_files],
                }
            )
            with atomic_path(self._next("files", "parquet")) as path:
                pq.write_table(table, path)
            self._new_files = []

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def _claim(self) -> None:
        path = self._root / _MANIFEST
        if path.exists():
            try:
                found = CacheManifest.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise GalleryError(f"feature cache {path} can't be read: {error.errors()[0]['msg']}") from None
            if found != self.manifest:
                names = CacheManifest.model_fields
                differing = ", ".join(name for name in names if getattr(found, name) != getattr(self.manifest, name))
                raise SpaceMismatch(
                    f"feature cache {self._root} differs from the bundle in {differing}: name another --cache"
                )
        elif self._root.exists() and any(self._root.iterdir()):
            raise GalleryError(f"{self._root} is not empty and no feature cache; name another --cache")
        write_model(path, self.manifest)

    def _load(self, path: Path) -> None:
        shard = _Shard.model_validate_json(path.read_bytes())
        data = path.with_suffix(".npy")
        if not data.is_file() or sha256_of_file(data) != shard.sha256:
            raise GalleryError(
                f"feature cache {self._root}: {data.name} is missing or corrupted; remove it and {path.name}, and its "
                "images are encoded again"
            )
        self._rows |= dict(zip(shard.digests, np.load(data, mmap_mode="r"), strict=True))

    def _next(self, folder: str, suffix: str) -> Path:
        (self._root / folder).mkdir(exist_ok=True)
        numbers = [int(path.stem) for path in (self._root / folder).glob(f"*.{suffix}")]
        return self._root / folder / f"{max(numbers, default=-1) + 1:05d}.{suffix}"


@dataclass(frozen=True)
class _Prepared:
    """An image on its way: its features if they are cached, else its pixels."""

    digest: str
    features: Features | None
    pixels: NDArray[np.float32] | None


class CachedEncoder:
    """A bundle in this process, whose targets go through a feature cache: encoder once an image, head every time.

    Features are rounded to float16. Give `prepare_file` to `embed_gallery`, so that files that are known stay closed.
    """

    def __init__(
        self,
        bundle: Bundle,
        cache: FeatureCache,
        *,
        engine: EngineName | None = None,
        decoding: Decoding = Decoding.EXACT,
        threads: int | None = None,
    ) -> None:
        """engine, decoding, threads: see `LocalEncoder`."""
        self._local = LocalEncoder(bundle, engine=engine, decoding=decoding, threads=threads)
        self._cache = cache
        self._spec = bundle.spec

    @property
    def space(self) -> SpaceSpec:
        """The vector space of the bundle; the cache does not change it."""
        return self._spec.space

    @property
    def concurrency(self) -> int:
        """See `LocalEncoder.concurrency`."""
        return self._local.concurrency

    def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `Encoder.encode_queries`; queries are not cached."""
        return self._local.encode_queries(images, texts)

    def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """See `Encoder.encode_targets`."""
        return self.encode_prepared(prepare_all(images, self.prepare))

    def prepare_file(self, path: Path) -> _Prepared:
        """Like `prepare`, of a file, which is read only if it is new or has changed. Raises InvalidImage."""
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        digest = self._cache.digest_of(key)
        features = self._cache.get(digest) if digest is not None else None
        if digest is not None and features is not None:
            return _Prepared(digest, features, None)
        prepared = self.prepare(image_bytes(path))
        self._cache.remember(key, prepared.digest)
        return prepared

    def prepare(self, image: bytes) -> _Prepared:
        """See `Encoder.prepare`. An image whose content is cached is not decoded."""
        digest = hashlib.sha256(image).hexdigest()
        features = self._cache.get(digest)
        pixels = None if features is not None else self._local.prepare(image)
        return _Prepared(digest, features, pixels)

    def encode_prepared(self, prepared: Sequence[_Prepared]) -> Embeddings:
        """See `Encoder.encode_prepared`."""
        if not prepared:
            return np.empty((0, *self.space.item_shape), dtype=np.float32)
        tensor = self._cache.manifest.tensor.name
        new = {item.digest: item.pixels for item in prepared if item.pixels is not None}
        if new:
            encoded = self._local.graph(_ENCODER, bulk=True)({"pixels": np.stack(list(new.values()))})[tensor].astype(
                np.float16
            )
            for digest, row in zip(new, encoded, strict=True):
                self._cache.put(digest, row)
        rows: list[Any] = [
            item.features if item.features is not None else self._cache.get(item.digest) for item in prepared
        ]
        features = {tensor: np.stack(rows).astype(np.float32)}
        answer: Embeddings = next(iter(self._local.graph(_HEAD, bulk=True)(features).values()))
        return answer


def _manifest(bundle: Bundle) -> CacheManifest:
    spec = bundle.spec
    components = spec.space.components
    if not {_ENCODER, _HEAD} <= set(spec.graphs) or len(spec.graphs[_HEAD].inputs) != 1:
        raise BundleError(f"bundle {bundle.root}: its targets are no head over an encoder, so nothing can be cached")
    return CacheManifest(
        backbone=components["backbone"], preprocess=components["preprocess"], tensor=spec.graphs[_HEAD].inputs[0]
    )
