"""Encode in this process, on the engines that are installed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import Bundle, SpaceSpec
from cirrus_client.canary import read_canary
from cirrus_client.choices import member
from cirrus_client.encoders.checked import CheckedEngine, check_pixels
from cirrus_client.encoders.protocol import Embeddings, check_query, prepare_all, query_pairs
from cirrus_client.encoders.reranker import Scores, check_reranked
from cirrus_client.engines import Engine, open_graph
from cirrus_client.ensemble import Arrays, EnsembleSpec, Model, StepSpec, in_batches, run
from cirrus_client.errors import ItemError
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.image.preprocess import Decoding, preprocess
from cirrus_client.names import EnsembleName, TensorName
from cirrus_client.tokenizer import Tokenizer

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class PreparedQuery:
    """A decoded and tokenized query. pixels: float32 [3, size_px, size_px], or None. token_ids: int64 [T]."""

    pixels: Pixels | None
    token_ids: NDArray[np.int64]


class LocalEncoder:
    """Runs a bundle's ensembles in this process. A graph is loaded once, by the first call that needs it.

    Threads may share an encoder. A process that is forked after the first call gets an EngineError: load the encoder in
    each worker, or use "spawn".
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str | None = None,
        decoding: Decoding | str = Decoding.EXACT,
        threads: int | None = None,
        observe: Callable[[str, float], None] | None = None,
        cut_texts: bool = True,
        checked: bool = False,
    ) -> None:
        """Keep the bundle. No graph is loaded yet.

        engine: the engine that runs the graphs; None takes the fastest, see `cirrus_client.engines.open_graph`.
        decoding: how gallery images are decoded. Queries are always decoded exactly. threads: CPU threads per run; None
        leaves it to the engine. observe: is told the name of every graph that ran and the seconds that it took; a copy
        by pickle has none. cut_texts: leave out padding where the bundle says that nothing reads it; False is for
        measuring what that saves. checked: compare this machine with the bundle's canary, if it has one, and give no
        embedding if it misses: the pixels of golden images now, and each graph's outputs before its first batch.

        Raises EngineError if the pixels are other ones, BundleError if the canary is damaged, and InvalidInput for an
        unknown decoding.
        """
        self.bundle = bundle
        self._engine = engine
        self._decoding = member(Decoding, decoding, "decoding")
        self._threads = threads
        self._observe = observe
        self._cut_texts = cut_texts
        self._canary = read_canary(bundle) if checked else None
        if self._canary is not None:
            check_pixels(self._canary, bundle.spec.preprocess)
        self._graphs: dict[tuple[str, bool], Engine] = {}
        self._loading = threading.Lock()

    def __reduce__(self) -> tuple[Callable[[], LocalEncoder], tuple[()]]:
        """Pickle the bundle and the options. The copy loads the graphs again."""
        return partial(
            LocalEncoder,
            self.bundle,
            engine=self._engine,
            decoding=self._decoding,
            threads=self._threads,
            cut_texts=self._cut_texts,
            checked=self._canary is not None,
        ), ()

    @property
    def space(self) -> SpaceSpec:
        """The vector space of the bundle."""
        return self.bundle.spec.space

    @property
    def concurrency(self) -> int:
        """One: a single call keeps the device busy."""
        return 1

    def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `Encoder.encode_queries`."""
        prepared = []
        for position, (image, text) in enumerate(query_pairs(images, texts)):
            try:
                prepared.append(self.prepare_query(image, text))
            except ItemError as error:
                raise error.at("query", position) from None
        return self.encode_prepared_queries(prepared)

    def prepare_query(self, image: ImageInput | None, text: str | None) -> PreparedQuery:
        """Decode and tokenize a query: the part of encoding it that can run in parallel threads.

        Raises what `Encoder.encode_queries` does, without a position.
        """
        token_ids = self.prepare_text(text, with_image=image is not None)
        return PreparedQuery(None if image is None else self.prepare_image(image_bytes(image)), token_ids)

    def prepare_text(self, text: str | None, *, with_image: bool) -> NDArray[np.int64]:
        """Return the token ids of a query's text, int64 [T]; an absent text is the empty one.

        Raises InvalidText, and UnsupportedQuery if the bundle answers no such query.
        """
        check_query(b"" if with_image else None, text, position=None, ensembles=self.bundle.spec.ensembles)
        token_ids: NDArray[np.int64] = self._tokenizer([text or ""])[0]
        return token_ids

    def prepare_image(self, image: bytes) -> Pixels:
        """Return the pixels of a query's image, float32 [3, size_px, size_px]. Raises InvalidImage."""
        return preprocess(image, self.bundle.spec.preprocess)

    def encode_prepared_queries(self, prepared: Sequence[PreparedQuery]) -> Embeddings:
        """Return one query embedding per prepared query, float32 [B, D]."""
        embeddings = np.empty((len(prepared), self.space.dim), dtype=np.float32)
        given: dict[str, NDArray[Any]]
        with_image = [row for row, query in enumerate(prepared) if query.pixels is not None]
        without_image = [row for row, query in enumerate(prepared) if query.pixels is None]
        if with_image:
            pixels = np.stack([query.pixels for query in prepared if query.pixels is not None])
            given = {TensorName.PIXELS: pixels, TensorName.TOKEN_IDS: _token_ids(prepared, with_image)}
            embeddings[with_image] = self.encode_tensors(EnsembleName.ENCODE_QUERY, given)
        if without_image:
            given = {TensorName.TOKEN_IDS: _token_ids(prepared, without_image)}
            embeddings[without_image] = self.encode_tensors(EnsembleName.ENCODE_TEXT_QUERY, given)
        return embeddings

    def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """See `Encoder.encode_targets`."""
        return self.encode_prepared(prepare_all(images, self.prepare))

    def prepare(self, image: bytes) -> Pixels:
        """Return a gallery image's pixels, float32 [3, size_px, size_px]. Raises InvalidImage."""
        return preprocess(image, self.bundle.spec.preprocess, self._decoding)

    def encode_prepared(self, prepared: Sequence[Pixels]) -> Embeddings:
        """See `Encoder.encode_prepared`."""
        if not prepared:
            return np.empty((0, *self.space.item_shape), dtype=np.float32)
        return self.encode_tensors(EnsembleName.ENCODE_TARGET, {"pixels": np.stack(prepared)})

    def scores(self, image: ImageInput | None, text: str | None, candidates: Sequence[ImageInput]) -> Scores:
        """See `Reranker.scores`."""
        check_reranked(image, self.bundle.spec.ensembles)
        try:
            query = self.prepare_query(image, text)
        except ItemError as error:
            raise error.at("query", 0) from None
        if not candidates:
            return np.empty(0, dtype=np.float32)
        assert query.pixels is not None
        pixels = np.stack(prepare_all(candidates, self.prepare_image, item="candidate"))
        given: dict[str, NDArray[Any]] = {
            TensorName.PIXELS: query.pixels[None],
            TensorName.TOKEN_IDS: query.token_ids[None],
        }
        given[TensorName.CONDITION] = self.encode_tensors(EnsembleName.ENCODE_CONDITION, given)
        of_query = {name: np.broadcast_to(value, (len(pixels), *value.shape[1:])) for name, value in given.items()}
        return self.encode_tensors(EnsembleName.SCORE_CANDIDATE, of_query | {TensorName.PIXELS: pixels})[:, 0]

    def encode_tensors(self, name: EnsembleName, given: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the result of an ensemble, float32 [B, *shape], from tensors that are there already, each [B, ...].

        given: pixels and token ids, or what some steps make of them; such a step does not run.
        """
        ensemble = self.bundle.spec.ensembles[name]
        parts = in_batches(given, self.bundle.spec.max_batch)
        return np.concatenate([self.run_steps(ensemble.steps, self._cut(part))[ensemble.output] for part in parts])

    def run_steps(self, steps: Sequence[StepSpec], given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graphs among an ensemble's steps on one batch, and return what they make, by name, each [B, ...]."""
        graphs = tuple(step for step in steps if step.model in self.bundle.spec.graphs)
        models = {step.model: self._observed(step.model) for step in graphs}
        tensors = run(EnsembleSpec(inputs=(), steps=graphs), models, given)
        return {name: tensors[name] for step in graphs for name in step.outputs.values()}

    def graph(self, name: str, *, bulk: bool | None = None) -> Engine:
        """Return the engine of one of the bundle's graphs. The first call loads it.

        bulk: see `open_engine`; None means True for a graph that only galleries use. Raises EngineError if no engine on
        this machine can run the graph.
        """
        if bulk is None:
            bulk = self.bundle.spec.is_for_bulk(name)
        with self._loading:
            if (name, bulk) not in self._graphs:
                engine = open_graph(self.bundle, name, engine=self._engine, threads=self._threads, bulk=bulk)
                self._graphs[name, bulk] = engine if self._canary is None else CheckedEngine(engine, name, self._canary)
            return self._graphs[name, bulk]

    def _observed(self, graph: str) -> Model:
        engine, observe = self.graph(graph), self._observe
        if observe is None:
            return engine

        def run_observed(inputs: Arrays) -> Arrays:
            started = time.perf_counter()
            outputs = engine(inputs)
            observe(graph, time.perf_counter() - started)
            return outputs

        return run_observed

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.bundle.spec.tokenizer, self.bundle.root)

    def _cut(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Leave out the padding that no text of a batch needs."""
        if not self._cut_texts or TensorName.TOKEN_IDS not in batch:
            return batch
        return batch | {TensorName.TOKEN_IDS: self.bundle.spec.tokenizer.cut(batch[TensorName.TOKEN_IDS])}


def _token_ids(prepared: Sequence[PreparedQuery], rows: Sequence[int]) -> NDArray[np.int64]:
    return np.stack([prepared[row].token_ids for row in rows])
