"""Decode images in threads while batches are encoded, so that neither has to wait for the other.

    waiting --> decoding --> ready --> encoding --> done
    (files)     (threads)    (items)   (batches)    (rows)

Batches are filled in the order in which decoding ends, so one slow image does not delay the others. At most
batch_size * (concurrency + 3) images are between `waiting` and `done`. Results come back in the order of the files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.errors import InvalidImage, ItemError
from cirrus_client.gallery.source import ImageFile, Rejected, Source

_BATCHES_AHEAD = 3
_Row = Embeddings | ItemError
"""The result for an image: its embedding, or the reason why there is none."""


class EmbedStream:
    """Embeds images of a source. Only one thread may use it. The end of a `with` block stops its thread pools."""

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        *,
        prepare: Callable[[Source, ImageFile], Any] | None = None,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> None:
        """Start the thread pools. prepare, batch_size, workers: see `embed_gallery`."""
        self._source = source
        self._encoder = encoder
        self._prepare = prepare or (lambda source, file: encoder.prepare(source.read(file)))
        self._batch_size = batch_size
        self._room = batch_size * (encoder.concurrency + _BATCHES_AHEAD)
        self._decoders = ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix="decode")
        self._encoders = ThreadPoolExecutor(encoder.concurrency, thread_name_prefix="encode")

    def __enter__(self) -> EmbedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pool in (self._decoders, self._encoders):
            pool.shutdown(cancel_futures=True)

    def embed(
        self, files: Sequence[ImageFile], on_done: Callable[[int], object] = lambda count: None
    ) -> tuple[Embeddings, list[ImageFile], list[Rejected]]:
        """Embed images. Return the embeddings, float32 [rows, *item_shape], their files, and the rejected files.

        All three are in the order of `files`. on_done: called with the number of files finished since its last call.
        Raises what the encoder raises, except InvalidImage and UnreadableImage, which reject the file.
        """
        rows: dict[int, _Row] = {}
        for part in self._results(files):
            rows |= part
            on_done(len(part))
        good = [position for position in range(len(files)) if not isinstance(rows[position], ItemError)]
        embeddings = np.empty((len(good), *self._encoder.space.item_shape), dtype=np.float32)
        for row, position in enumerate(good):
            embeddings[row] = rows[position]
        rejected = [Rejected(file, str(rows[n])) for n, file in enumerate(files) if isinstance(rows[n], ItemError)]
        return embeddings, [files[position] for position in good], rejected

    def _results(self, files: Sequence[ImageFile]) -> Iterator[dict[int, _Row]]:
        """Yield results by position in `files`, as they become known.

        Each turn of the loop moves images one step along the states in the module's docstring. It waits for a decoder
        only if no full batch is ready, and for an encoder only if nothing is left to decode or start.
        """
        waiting = iter(enumerate(files))
        decoded: SimpleQueue[tuple[int, Future[Any]]] = SimpleQueue()
        ready: dict[int, Any] = {}
        encoding: deque[Future[dict[int, _Row]]] = deque()
        in_decoders = in_line = 0
        while True:
            while in_line < self._room and (entry := next(waiting, None)) is not None:
                position, file = entry
                future = self._decoders.submit(self._prepare, self._source, file)
                future.add_done_callback(partial(_announce, decoded, position))
                in_decoders, in_line = in_decoders + 1, in_line + 1
            while encoding and encoding[0].done():
                rows = encoding.popleft().result()
                in_line -= len(rows)
                yield rows
            if in_decoders and len(ready) < self._batch_size:
                position, future = decoded.get()
                in_decoders -= 1
                try:
                    ready[position] = future.result()
                except ItemError as error:
                    in_line -= 1
                    yield {position: error}
            elif ready and len(encoding) <= self._encoder.concurrency:
                batch = {position: ready.pop(position) for position in list(ready)[: self._batch_size]}
                encoding.append(self._encoders.submit(self._encode, batch))
            elif encoding:
                wait([encoding[0]])
            else:
                return

    def _encode(self, batch: dict[int, Any]) -> dict[int, _Row]:
        """Encode a batch. If an image turns out to be broken only now, encode each image alone."""
        try:
            return dict(zip(batch, self._encoder.encode_prepared(list(batch.values())), strict=True))
        except InvalidImage as error:
            if len(batch) == 1:
                return dict.fromkeys(batch, error)
        rows: dict[int, _Row] = {}
        for position, prepared in batch.items():
            rows |= self._encode({position: prepared})
        return rows


def _announce(decoded: SimpleQueue[tuple[int, Future[Any]]], position: int, future: Future[Any]) -> None:
    decoded.put((position, future))
