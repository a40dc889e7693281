"""Encode gallery images through a feature cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import Bundle, SpaceSpec
from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.protocol import Embeddings, prepare_all
from cirrus_client.ensemble import Arrays, in_batches
from cirrus_client.gallery.feature_cache import CacheManifest, Features, FileKey
from cirrus_client.gallery.source import ImageFile, Source
from cirrus_client.image.inputs import ImageInput
from cirrus_client.image.preprocess import Decoding
from cirrus_client.names import GraphName, TensorName


@dataclass(frozen=True)
class _Prepared:
    """A prepared image: its features if they are cached, else its pixels. digest: the sha256 of the image file."""

    digest: str
    features: Features | None
    pixels: NDArray[np.float32] | None


class Cache(Protocol):
    """What an encoder needs of a `FeatureCache`, which may be in another process. Threads may share it."""

    @property
    def manifest(self) -> CacheManifest:
        """What the features are of."""
        ...

    def get(self, digest: str) -> Features | None:
        """See `FeatureCache.get`."""
        ...

    def put_all(self, rows: Mapping[str, Features]) -> None:
        """See `FeatureCache.put_all`."""
        ...

    def digest_of(self, file: FileKey) -> str | None:
        """See `FeatureCache.digest_of`."""
        ...

    def remember(self, file: FileKey, digest: str) -> None:
        """See `FeatureCache.remember`."""
        ...


class CachedEncoder:
    """Runs a bundle in this process with a feature cache: the backbone once per image, the head in every call.

    Threads may share an encoder. Features are rounded to float16. Pass it to `embed_gallery` as `recollection` as
    well, so that known files are not opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        cache: Cache,
        *,
        engine: str | None = None,
        decoding: Decoding | str = Decoding.EXACT,
        threads: int | None = None,
    ) -> None:
        """Keep the bundle and the cache. engine, decoding, threads: see `LocalEncoder`, which is a checked one."""
        self._local = LocalEncoder(bundle, engine=engine, decoding=decoding, threads=threads, checked=True)
        self._cache = cache
        self._spec = bundle.spec

    @property
    def space(self) -> SpaceSpec:
        """The vector space of the bundle. The cache does not change it."""
        return self._spec.space

    @property
    def concurrency(self) -> int:
        """See `LocalEncoder.concurrency`."""
        return self._local.concurrency

    def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `Encoder.encode_queries`. Queries are not cached."""
        return self._local.encode_queries(images, texts)

    def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """See `Encoder.encode_targets`."""
        return self.encode_prepared(prepare_all(images, self.prepare))

    def recall(self, source: Source, file: ImageFile) -> tuple[str, _Prepared] | None:
        """See `Recollection.recall`. An image is known as long as it is as it was when it was read."""
        digest = self._cache.digest_of(_key(source, file))
        features = self._cache.get(digest) if digest is not None else None
        if digest is None or features is None:
            return None
        return digest, _Prepared(digest, features, None)

    def remember(self, source: Source, file: ImageFile, digest: str) -> None:
        """See `Recollection.remember`."""
        self._cache.remember(_key(source, file), digest)

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
        features = self._cache.manifest.tensor.name
        new = {item.digest: item.pixels for item in prepared if item.pixels is not None}
        fresh: dict[str, Features] = {}
        if new:
            pixels = np.stack(list(new.values()))
            encoded = self._run(GraphName.VISION_ENCODER, {TensorName.PIXELS: pixels}, features)
            fresh = dict(zip(new, encoded.astype(np.float16), strict=True))
            self._cache.put_all(fresh)
        rows: list[Any] = [fresh[item.digest] if item.features is None else item.features for item in prepared]
        target = self._spec.graphs[GraphName.TARGET_HEAD].outputs[0].name
        return self._run(GraphName.TARGET_HEAD, {features: np.stack(rows).astype(np.float32)}, target)

    def _run(self, graph: GraphName, inputs: Arrays, output: str) -> NDArray[np.float32]:
        """Return an output of a graph, which runs on at most as many rows at a time as the bundle's graphs take."""
        engine = self._local.graph(graph, bulk=True)
        return np.concatenate([engine(part)[output] for part in in_batches(inputs, self._spec.max_batch)])


def _key(source: Source, file: ImageFile) -> FileKey:
    return FileKey(f"{source.root}/{file.path}", file.size, file.mtime_ns, file.etag)
