"""The whole job, from image files to embeddings on disk: the baseline, and Cirrus at every precision."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_bench import baseline
from cirrus_bench.gallery import case
from cirrus_bench.gallery.case import Case
from cirrus_bench.gallery.report import CACHED_IMAGES
from cirrus_bench.gallery.stages import BATCH_SIZE
from cirrus_bench.measure import Work
from cirrus_bench.subjects import Subjects
from cirrus_client.bundle import Precision
from cirrus_client.encoders import Encoder, LocalEncoder
from cirrus_client.files import sha256_of_file
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.gallery.cached_encoder import CachedEncoder
from cirrus_client.gallery.feature_cache import FeatureCache
from cirrus_client.image.preprocess import Decoding
from cirrus_export.recipes.transagg_union import TransAggUnion

_CACHED_BATCH_SIZE = 512


class EndToEnd:
    """Every way to do the whole job. It keeps the embeddings of each way's last run."""

    def __init__(self, subjects: Subjects[TransAggUnion], photos: Sequence[Path], work: Path) -> None:
        """work: where galleries, the feature cache and copies of the photos are written."""
        self._subjects = subjects
        self._photos = photos
        self._work = work
        self._baseline: NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self._galleries: dict[Case, Path] = {}
        shutil.rmtree(work / "features", ignore_errors=True)
        self._cache = FeatureCache(work / "features", subjects.bundles[Precision.FP32])
        self._copies = _copy(photos, work / f"photos-copied-{CACHED_IMAGES}")

    def cases(self) -> dict[Case, Work]:
        """Return every way as a function to time."""
        cases: dict[Case, Work] = {case.BASELINE: self._run_baseline}
        for decoding in (Decoding.EXACT, Decoding.FAST):
            for precision, bundle in self._subjects.bundles.items():
                measured = case.cirrus(precision, decoding)
                encoder = LocalEncoder(bundle, decoding=decoding)
                cases[measured] = partial(self._embed, measured, self._photos[0].parent, encoder, batch_size=BATCH_SIZE)
        cases[case.CACHED_FEATURES] = self._embed_cached
        return cases

    def embeddings(self) -> dict[Case, NDArray[np.float32]]:
        """Return what the last run of each of Cirrus's ways computed for the photos, float32 [N, D]."""
        return {
            measured: read_gallery(folder).embeddings[: len(self._photos)]
            for measured, folder in self._galleries.items()
        }

    def baseline_embeddings(self) -> NDArray[np.float32]:
        """Return what the last run of the baseline computed, float32 [N, D]."""
        return self._baseline

    def _run_baseline(self) -> None:
        spec = self._subjects.bundles[Precision.FP32].spec.preprocess
        self._baseline = baseline.embed(self._subjects.recipe, self._photos, spec).numpy()

    def _embed_cached(self) -> None:
        """Do what `cirrus embed --cache` does for a new head; the warm-up round fills the cache."""
        cached = CachedEncoder(self._subjects.bundles[Precision.FP32], self._cache)
        if not len(self._cache):
            self._fill_cache(cached)
        self._embed(case.CACHED_FEATURES, self._copies, cached, recollection=cached, batch_size=_CACHED_BATCH_SIZE)

    def _fill_cache(self, cached: CachedEncoder) -> None:
        """Encode the photos, and give every copy the features of its photo."""
        cached.encode_targets(self._photos)
        for number, copy in enumerate(sorted(self._copies.iterdir())):
            features = self._cache.get(sha256_of_file(self._photos[number % len(self._photos)]))
            assert features is not None
            self._cache.put(sha256_of_file(copy), features)

    def _embed(self, measured: Case, photos: Path, encoder: Encoder, **options: Any) -> None:
        folder = self._work / "galleries" / f"{measured.method.name}-{measured.precision}-{measured.decoding}".lower()
        shutil.rmtree(folder, ignore_errors=True)
        embed_gallery(photos, folder, encoder, show_progress=False, **options)
        self._galleries[measured] = folder


def _copy(photos: Sequence[Path], folder: Path) -> Path:
    """Write CACHED_IMAGES copies of the photos in rounds, and return the folder.

    Each ends in bytes of its own, which no decoder reads, since equal files would be embedded once.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(CACHED_IMAGES):
        content = photos[number % len(photos)].read_bytes()
        (folder / f"{number:06d}.jpg").write_bytes(content + number.to_bytes(4, "big"))
    return folder
