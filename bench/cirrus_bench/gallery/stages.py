"""The stages of embedding a gallery, each alone: on files, on decoded pixels, or on features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cirrus_bench.gallery import case
from cirrus_bench.gallery.case import Case, Method, Stage
from cirrus_bench.gallery.report import HEAD_ROWS, SweepRow
from cirrus_bench.measure import Work, time_interleaved
from cirrus_bench.subjects import Subjects
from cirrus_client.bundle import Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.engines import Engine, EngineName, candidates, open_graph
from cirrus_client.image.preprocess import Decoding, Pad, PreprocessSpec, preprocess
from cirrus_client.names import GraphName, TensorName
from cirrus_client.plans import has_plans
from cirrus_export.recipes.transagg_union import TransAggUnion

BATCH_SIZE = 32
_SWEEP_SIZES = (1, 4, 16, 64)
_SWEEP_ROUNDS = 3
_FEATURES, _EMBEDDING = "image_embedding", "target_embedding"

Rows = NDArray[np.float32]
T = TypeVar("T")


class Stages:
    """The stages on the same photos and weights. Not for several threads at once."""

    def __init__(self, subjects: Subjects[TransAggUnion], photos: Sequence[Path]) -> None:
        """Decode the photos, load the graphs, and compute the features that the target head is measured on."""
        self._subjects = subjects
        self._photos = photos
        self._preprocess = subjects.bundles[Precision.FP32].spec.preprocess
        self._pixels = _decode(photos, self._preprocess, Decoding.EXACT)
        self._encoders = {precision: LocalEncoder(bundle) for precision, bundle in subjects.bundles.items()}
        exact = self._encoders[Precision.FP32]
        self._encode = _graph(exact.graph(GraphName.VISION_ENCODER, bulk=True), TensorName.PIXELS, _FEATURES)
        features = np.concatenate(list(_batches(self._encode, self._pixels)))
        self._features = np.resize(features, (HEAD_ROWS, features.shape[1]))
        self._head = exact.graph(GraphName.TARGET_HEAD)
        self.head_case = case.graph(Stage.TARGET_HEAD, Precision.FP32, self._head.device)
        self.gallery_case = case.graph(Stage.GALLERY_GRAPH, Precision.FP32, exact.graph(GraphName.GALLERY).device)

    def plain_clip(self) -> Rows:
        """Return the photos' embeddings without UNION and its padding, float32 [N, D]: what peers should compute."""
        unpadded = self._preprocess.model_copy(update={"pad": Pad.NONE})
        return np.concatenate(list(_batches(self._encode, _decode(self._photos, unpadded, Decoding.EXACT))))

    def cases(self) -> dict[Case, Work]:
        """Return every stage as a function to time."""
        backbone, target_head = self._subjects.recipe.backbone, self._subjects.recipe.target_head
        eager, compiled = _torch(backbone.encode_image), _torch(torch.compile(backbone.encode_image))
        return {
            **{
                case.decode(decoding): partial(_decode, self._photos, self._preprocess, decoding)
                for decoding in (Decoding.EXACT, Decoding.FAST)
            },
            case.torch_module(Stage.ENCODER, Method.PYTORCH_EAGER): partial(_run, eager, self._pixels),
            case.torch_module(Stage.ENCODER, Method.PYTORCH_COMPILED): partial(_run, compiled, self._pixels),
            **self._encoder_cases(),
            case.torch_module(Stage.TARGET_HEAD, Method.PYTORCH_EAGER): partial(
                _run, _torch(target_head), self._features
            ),
            self.head_case: partial(_run, _graph(self._head, _FEATURES, _EMBEDDING), self._features),
            **self._gallery_cases(),
        }

    def sweep(self) -> Iterator[SweepRow]:
        """Measure the gallery graph by batch size, at each precision on the engine that `auto` chooses."""
        pixels = self._pixels[: max(_SWEEP_SIZES)]
        for precision, encoder in self._encoders.items():
            engine = encoder.graph(GraphName.GALLERY)
            embed = _graph(engine, TensorName.PIXELS, _EMBEDDING)
            works = {size: partial(_run, embed, pixels, size) for size in _SWEEP_SIZES}
            for size, timing in time_interleaved(works, _SWEEP_ROUNDS).items():
                yield SweepRow(
                    precision=precision,
                    device=engine.device,
                    batch_size=size,
                    images_per_s=len(pixels) / timing.median,
                )

    def _encoder_cases(self) -> dict[Case, Work]:
        """Return the encoder on every engine that runs it, at every precision."""
        cases: dict[Case, Work] = {}
        for precision, bundle in self._subjects.bundles.items():
            names = [*candidates(precision), *([EngineName.TENSORRT] if has_plans(bundle.root) else [])]
            for name in names:
                engine = open_graph(bundle, GraphName.VISION_ENCODER, engine=name, bulk=True)
                encode = _graph(engine, TensorName.PIXELS, _FEATURES)
                cases[case.graph(Stage.ENCODER, precision, engine.device)] = partial(_run, encode, self._pixels)
        return cases

    def _gallery_cases(self) -> dict[Case, Work]:
        """Return the graph of encoder and UNION, which embeds galleries, on the engine that `auto` chooses."""
        engines = {precision: encoder.graph(GraphName.GALLERY) for precision, encoder in self._encoders.items()}
        return {
            case.graph(Stage.GALLERY_GRAPH, precision, engine.device): partial(
                _run, _graph(engine, TensorName.PIXELS, _EMBEDDING), self._pixels
            )
            for precision, engine in engines.items()
        }


def _torch(function: Callable[[torch.Tensor], object]) -> Callable[[Rows], object]:
    def run(batch: Rows) -> object:
        with torch.no_grad():
            return function(torch.from_numpy(batch))

    return run


def _graph(engine: Engine, given: str, wanted: str) -> Callable[[Rows], Rows]:
    def run(batch: Rows) -> Rows:
        output: Rows = engine({given: batch})[wanted]
        return output

    return run


def _decode(photos: Sequence[Path], spec: PreprocessSpec, decoding: Decoding) -> Rows:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(lambda path: preprocess(path.read_bytes(), spec, decoding), photos)))


def _run(function: Callable[[Rows], object], rows: Rows, size: int = BATCH_SIZE) -> None:
    for _ in _batches(function, rows, size):
        pass


def _batches(function: Callable[[Rows], T], rows: Rows, size: int = BATCH_SIZE) -> Iterator[T]:
    return (function(rows[start : start + size]) for start in range(0, len(rows), size))
