"""The pictures that training sees: families of look-alikes, each garment as a photo and as a sketch."""

from __future__ import annotations

import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from cirrus_client.image.preprocess import PreprocessSpec, fit
from cirrus_demo.attributes import Garment, Kind, Split
from cirrus_demo.drawing import render
from cirrus_demo.families import family
from cirrus_demo.sketch import sketch

FAMILY_SIZE = 8
RENDER_SIZES_PX = (160, 224)


@dataclass(frozen=True)
class Samples:
    """Garments with their pictures; family f has the places f * FAMILY_SIZE up to (f + 1) * FAMILY_SIZE."""

    garments: tuple[Garment, ...]
    photos: NDArray[np.uint8]
    """[N, H, W, 3], cropped to the model's size, not yet normalised."""
    sketches: NDArray[np.uint8]
    """[N, H, W, 3]"""

    @property
    def num_families(self) -> int:
        """How many families there are."""
        return len(self.garments) // FAMILY_SIZE


def draw_samples(split: Split, num_families: int, *, seed: int, spec: PreprocessSpec) -> Samples:
    """Draw the families of a split, on every processor. The same arguments give the same pixels."""
    jobs = [(split, seed, number, spec) for number in range(num_families)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        families = list(tqdm(pool.map(_draw_family, jobs, chunksize=16), total=num_families, desc="rendering"))
    return Samples(
        garments=tuple(garment for garments, _, _ in families for garment in garments),
        photos=np.concatenate([photos for _, photos, _ in families]),
        sketches=np.concatenate([sketches for _, _, sketches in families]),
    )


def _draw_family(
    job: tuple[Split, int, int, PreprocessSpec],
) -> tuple[tuple[Garment, ...], NDArray[np.uint8], NDArray[np.uint8]]:
    split, seed, number, spec = job
    rng = np.random.default_rng((seed, number, 17))
    garments = family(split, tuple(Kind)[number % len(Kind)], FAMILY_SIZE, rng)
    seeds = [int(rng.integers(2**40)) for _ in garments]
    sizes = [int(rng.integers(*RENDER_SIZES_PX)) for _ in garments]
    drawn = list(zip(garments, seeds, sizes, strict=True))
    photos = [_as_file(render(*each), spec) for each in drawn]
    sketches = [_as_file(sketch(*each), spec) for each in drawn]
    return garments, np.stack(photos), np.stack(sketches)


def _as_file(picture: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The picture as it reaches the model from a JPEG file, uint8 [H, W, 3]."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    with Image.open(file) as decoded:
        return np.asarray(fit(decoded, spec))
