"""What the workers of a cluster embed with: a bundle of their own, and the feature cache of the driver's machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirrus_client.bundle import Bundle
from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.encoders.protocol import Encoder
from cirrus_client.engines import chosen_engine
from cirrus_client.errors import ClusterError
from cirrus_client.extras import need
from cirrus_client.gallery.cached_encoder import CachedEncoder
from cirrus_client.gallery.feature_cache import CacheManifest, FeatureCache, Features, FileKey
from cirrus_client.gallery.stream import Recollection
from cirrus_client.image.preprocess import Decoding
from cirrus_client.names import EnsembleName, GraphName

_THREADS = 8


@dataclass(frozen=True)
class BundleTools:
    """Opens a bundle in each worker. It must be at the same path on all machines, like the images.

    engine: runs the graphs on all workers, so that they write the same bytes. cache: of `shared_cache`.
    """

    bundle: Path
    engine: str | None = None
    decoding: Decoding = Decoding.EXACT
    trust_plans: bool = False
    cache: SharedCache | None = None

    def __call__(self, threads: int | None) -> tuple[Encoder, Recollection | None]:
        """Return the encoder, and what it knows of images. threads: see `LocalEncoder`."""
        bundle = Bundle.open(self.bundle, trust_plans=self.trust_plans)
        if self.cache is None:
            return LocalEncoder(bundle, engine=self.engine, decoding=self.decoding, threads=threads, checked=True), None
        cached = CachedEncoder(bundle, self.cache, engine=self.engine, decoding=self.decoding, threads=threads)
        return cached, cached

    def choose_engine(self, threads: int | None) -> str:
        """Return the name of the engine that runs the bundle's largest gallery graph fastest on this machine."""
        bundle = Bundle.open(self.bundle, trust_plans=self.trust_plans)
        graph: str = GraphName.VISION_ENCODER
        if self.cache is None:
            models = [step.model for step in bundle.spec.ensembles[EnsembleName.ENCODE_TARGET].steps]
            graph = next(model for model in models if model in bundle.spec.graphs)
        return chosen_engine(bundle, graph, threads=threads, bulk=True)


class SharedCache:
    """A feature cache in another process of a Ray cluster, as `CachedEncoder` uses one. Threads may share it."""

    def __init__(self, actor: Any, manifest: CacheManifest) -> None:
        self._actor = actor
        self.manifest = manifest

    def get(self, digest: str) -> Features | None:
        """See `FeatureCache.get`."""
        features: Features | None = _ray().get(self._actor.get.remote(digest))
        return features

    def put_all(self, rows: Mapping[str, Features]) -> None:
        """See `FeatureCache.put_all`. When it returns, the cache holds them, so that closing it loses nothing."""
        _ray().get(self._actor.put_all.remote(dict(rows)))

    def digest_of(self, file: FileKey) -> str | None:
        """See `FeatureCache.digest_of`."""
        digest: str | None = _ray().get(self._actor.digest_of.remote(tuple(file)))
        return digest

    def remember(self, file: FileKey, digest: str) -> None:
        """See `FeatureCache.remember`."""
        _ray().get(self._actor.remember.remote(tuple(file), digest))


@contextmanager
def shared_cache(root: Path, bundle: Path) -> Iterator[SharedCache]:
    """Open a feature cache on this machine for the workers of a cluster.

    Raises what `FeatureCache` raises, and ClusterError if the process that holds it dies.
    """
    ray = _ray()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    actor = ray.remote(_CacheProcess).options(num_cpus=0, max_concurrency=_THREADS, scheduling_strategy=here).remote()
    try:
        manifest = ray.get(actor.open.remote(root.resolve(), bundle.resolve()))
        try:
            yield SharedCache(actor, manifest)
        finally:
            ray.get(actor.close.remote())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError:
        raise ClusterError(
            f"the process that holds the feature cache {root} has died; run the same command again",
            address=ray.get_runtime_context().gcs_address,
        ) from None
    finally:
        ray.kill(actor)


class _CacheProcess:
    """The actor that holds the cache, since one process at a time may use it."""

    _cache: FeatureCache

    def open(self, root: Path, bundle: Path) -> CacheManifest:
        self._cache = FeatureCache(root, Bundle.open(bundle))
        return self._cache.manifest

    def get(self, digest: str) -> Features | None:
        return self._cache.get(digest)

    def put_all(self, rows: dict[str, Features]) -> None:
        self._cache.put_all(rows)

    def digest_of(self, file: tuple[str, int, int, str]) -> str | None:
        return self._cache.digest_of(FileKey(*file))

    def remember(self, file: tuple[str, int, int, str], digest: str) -> None:
        self._cache.remember(FileKey(*file), digest)

    def close(self) -> None:
        self._cache.close()


def _ray() -> Any:
    return need("ray", "--ray")
