"""Encode the queries of many requests: in this process in batches, or on a Triton server, which batches itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar, TypeVarTuple

import numpy as np
from numpy.typing import NDArray

from cirrus_client.cores import usable_cores
from cirrus_client.encoders.local import Pixels
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.encoders.remembering import Condition, KnownQuery, RememberingEncoder
from cirrus_client.encoders.reranker import Scores, check_reranked
from cirrus_client.errors import ItemError, NotReady, TooManyRequests
from cirrus_client.replay import LocalRunner, Runner, TritonRunner
from cirrus_client.service.batching import Batcher
from cirrus_client.service.stopwatch import Stage, Stopwatch
from cirrus_client.service.together import all_of
from cirrus_client.triton.channel import is_ready
from cirrus_client.triton.encoder import AsyncTritonEncoder
from cirrus_client.triton.served_names import ServedNames

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_CANDIDATES = 16  # per waiting query, how many candidates may wait
Pair = tuple[bytes | None, str | None]
"""The image file and the text of a query. One of them may be None."""


class QueryEncoder(Protocol):
    """Encodes the queries of many requests. Tasks of one event loop may share it."""

    async def encode(self, pairs: Sequence[Pair], watch: Stopwatch) -> Embeddings:
        """Return one query embedding per pair, float32 [B, D].

        Raises what `Encoder.encode_queries` does, and TooManyRequests if too many queries wait.
        """
        ...

    async def encode_targets(self, images: Sequence[bytes]) -> Embeddings:
        """Return one gallery embedding per image; see `Encoder.encode_targets`."""
        ...

    async def scores(self, query: Pair, candidates: Sequence[bytes]) -> Scores:
        """Return one score per candidate; see `Reranker.scores`. Raises TooManyRequests as `encode` does."""
        ...

    def waiting(self) -> int:
        """Return the number of queries that wait."""
        ...

    def runner(self) -> Runner:
        """Return what runs its stages one by one, for the canary."""
        ...

    async def check(self) -> None:
        """Raise NotReady if what encodes is not there now."""
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...


class LocalQueries:
    """Encodes in this process. Images are decoded in threads; what is in flight is encoded in batches.

    Texts are encoded while images are decoded, unless other queries are in flight: these share batches.
    """

    def __init__(
        self, queries: RememberingEncoder, *, max_waiting: int, observe: Callable[[int], None] = lambda size: None
    ) -> None:
        """Keep the encoder. max_waiting, observe: see `Batcher`."""
        self._queries = queries
        self._encoder = encoder = queries.encoder
        self._decoding = ThreadPoolExecutor(usable_cores(), "decode")
        self._running = ThreadPoolExecutor(1, "encode")
        self._in_flight = 0
        self._batcher: Batcher[KnownQuery, Embeddings] = Batcher(
            self._run, max_batch=encoder.bundle.spec.max_batch, max_waiting=max_waiting, observe=observe
        )
        self._targets: Batcher[Pixels, Embeddings] = Batcher(
            self._run_targets, max_batch=encoder.bundle.spec.max_batch, max_waiting=max_waiting, observe=observe
        )
        self._candidates: Batcher[tuple[Condition, KnownQuery], float] = Batcher(
            self._run_candidates,
            max_batch=encoder.bundle.spec.max_batch,
            max_waiting=_CANDIDATES * max_waiting,
            observe=observe,
        )

    async def encode(self, pairs: Sequence[Pair], watch: Stopwatch) -> Embeddings:
        """See `QueryEncoder.encode`."""
        self._in_flight += 1
        try:
            return await self._encoded(pairs, watch)
        finally:
            self._in_flight -= 1

    async def encode_targets(self, images: Sequence[bytes]) -> Embeddings:
        """See `QueryEncoder.encode_targets`."""
        prepared = await all_of(
            self._in_thread("image", place, self._encoder.prepare, image) for place, image in enumerate(images)
        )
        return np.stack([one.result for one in await self._targets.submit(prepared)])

    async def scores(self, query: Pair, candidates: Sequence[bytes]) -> Scores:
        """See `QueryEncoder.scores`. Candidates of several queries share batches, and known images are not encoded."""
        image, text = query
        check_reranked(image, self._encoder.bundle.spec.ensembles)
        assert image is not None
        loop = asyncio.get_running_loop()
        prepare = self._queries.prepare_candidate
        prepared = await all_of(
            self._in_thread("candidate", place, prepare, one) for place, one in enumerate(candidates)
        )
        try:
            condition = await loop.run_in_executor(self._running, self._queries.condition, image, text)
        except ItemError as error:
            raise error.at("query", 0) from None
        done = await self._candidates.submit([(condition, one) for one in prepared])
        return np.array([one.result for one in done], dtype=np.float32)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for it."""
        return not (self._in_flight or self._targets.busy or self._candidates.busy)

    async def learn(self, image: bytes) -> bool:
        """Encode the image of an item ahead; see `RememberingEncoder.learn`. It is for when nobody waits."""
        return await asyncio.get_running_loop().run_in_executor(self._running, self._queries.learn, image)

    def waiting(self) -> int:
        """See `QueryEncoder.waiting`."""
        return len(self._batcher) + len(self._targets) + len(self._candidates)

    def runner(self) -> Runner:
        """See `QueryEncoder.runner`."""
        return LocalRunner(self._encoder)

    async def check(self) -> None:
        """See `QueryEncoder.check`: this process is there."""

    async def close(self) -> None:
        """See `QueryEncoder.close`."""
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._running.shutdown(wait=False, cancel_futures=True)

    async def _encoded(self, pairs: Sequence[Pair], watch: Stopwatch) -> Embeddings:
        with watch.measure(Stage.DECODE):
            known = await all_of(
                self._in_thread("query", place, self._queries.look_up, *pair) for place, pair in enumerate(pairs)
            )
        prepared = await self._prepare(known, [image for image, _ in pairs], watch)
        new = [query for query in prepared if query.embedding is None]
        done = await self._batcher.submit(new) if new else []
        watch.add(Stage.QUEUE, max((one.waited_s for one in done), default=0.0))
        watch.add(Stage.ENCODE, max((one.ran_s for one in done), default=0.0))
        results = iter([one.result for one in done])
        return np.stack([next(results) if query.embedding is None else query.embedding for query in prepared])

    async def _in_thread(self, item: str, place: int, prepare: Callable[[*Ts], T], *given: *Ts) -> T:
        """Prepare an item in a thread that decodes. Its errors get the item's place."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoding, prepare, *given)
        except ItemError as error:
            raise error.at(item, place) from None

    async def _prepare(
        self, queries: Sequence[KnownQuery], images: Sequence[bytes | None], watch: Stopwatch
    ) -> list[KnownQuery]:
        """Decode the images of queries. Meanwhile encode their texts, if no others are in flight to share a batch."""
        prepared = list(queries)
        new = [place for place, query in enumerate(queries) if not query.is_decoded]
        if not new:
            return prepared
        texts = asyncio.ensure_future(self._with_texts([queries[place] for place in new]))
        try:
            with watch.measure(Stage.DECODE):
                decode = self._queries.decode
                decoded = await all_of(
                    self._in_thread("query", place, decode, queries[place], images[place]) for place in new
                )
            with watch.measure(Stage.ENCODE):
                encoded = await texts
        finally:
            texts.cancel()
        for place, pixels, text in zip(new, decoded, encoded, strict=True):
            prepared[place] = replace(pixels, text_features=text.text_features)
        return prepared

    async def _with_texts(self, queries: Sequence[KnownQuery]) -> Sequence[KnownQuery]:
        if self._in_flight > 1 or len(queries) > self._encoder.bundle.spec.max_batch:
            return queries
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._running, self._queries.encode_texts, queries)

    async def _run_candidates(self, candidates: Sequence[tuple[Condition, KnownQuery]]) -> Sequence[float]:
        loop = asyncio.get_running_loop()
        scores: Scores = await loop.run_in_executor(self._running, self._queries.score, candidates)
        return [float(score) for score in scores]

    async def _run_targets(self, prepared: Sequence[Pixels]) -> Sequence[Embeddings]:
        loop = asyncio.get_running_loop()
        return list(await loop.run_in_executor(self._running, self._encoder.encode_prepared, prepared))

    async def _run(self, prepared: Sequence[KnownQuery]) -> Sequence[Embeddings]:
        loop = asyncio.get_running_loop()
        return list(await loop.run_in_executor(self._running, self._queries.encode_prepared_queries, prepared))


class TritonQueries:
    """Encodes on a Triton server, which batches what is in flight.

    What is cancelled before it was sent is not sent. What was sent is cancelled on the server, if that survives it;
    else its answer is not waited for.
    """

    def __init__(
        self,
        encoder: AsyncTritonEncoder,
        *,
        names: ServedNames,
        max_waiting: int,
        max_sent: int = 128,
        cancels: bool = True,
    ) -> None:
        """Keep the encoder.

        names: of its models, for the canary. max_waiting: queries that may be under way. max_sent: requests that
        the server has at a time. cancels: see `survives_cancellation`.
        """
        self._encoder = encoder
        self._names = names
        self._max_waiting = max_waiting
        self._cancels = cancels
        self._turns = asyncio.Semaphore(max_sent)
        self._under_way = 0

    async def encode(self, pairs: Sequence[Pair], watch: Stopwatch) -> Embeddings:
        """See `QueryEncoder.encode`."""
        with watch.measure(Stage.ENCODE):
            images, texts = [image for image, _ in pairs], [text for _, text in pairs]
            return await self._sent(len(pairs), lambda: self._encoder.encode_queries(images, texts))

    async def encode_targets(self, images: Sequence[bytes]) -> Embeddings:
        """See `QueryEncoder.encode_targets`."""
        return await self._sent(len(images), lambda: self._encoder.encode_targets(images))

    async def scores(self, query: Pair, candidates: Sequence[bytes]) -> Scores:
        """See `QueryEncoder.scores`. The candidates of a query count as one that is under way."""
        image, text = query
        return await self._sent(1, lambda: self._encoder.scores(image, text, candidates))

    def waiting(self) -> int:
        """See `QueryEncoder.waiting`."""
        return self._under_way

    def runner(self) -> Runner:
        """See `QueryEncoder.runner`."""
        return TritonRunner(self._encoder.url, self._names)

    async def check(self) -> None:
        """See `QueryEncoder.check`."""
        if not await asyncio.to_thread(is_ready, self._encoder.url):
            raise NotReady("the Triton server is not ready", part="triton")

    async def close(self) -> None:
        """See `QueryEncoder.close`."""
        await self._encoder.close()

    async def _sent(self, count: int, send: Callable[[], Coroutine[Any, Any, NDArray[Any]]]) -> NDArray[Any]:
        """Send a request of so many items when it is its turn. Raises TooManyRequests if too many are under way."""
        if self._under_way + count > self._max_waiting:
            raise TooManyRequests(
                f"{self._under_way} queries are under way, the limit is {self._max_waiting}; try again later, "
                "or send fewer at a time",
                retry_after_s=1,
            )
        self._under_way += count
        try:
            await self._turns.acquire()
            sent = asyncio.ensure_future(send())
            sent.add_done_callback(self._answered)
            return await (sent if self._cancels else asyncio.shield(sent))
        finally:
            self._under_way -= count

    def _answered(self, sent: asyncio.Future[NDArray[Any]]) -> None:
        self._turns.release()
        if not sent.cancelled():
            sent.exception()  # of a request that nobody waits for any more
