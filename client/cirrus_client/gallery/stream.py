"""Decode images in threads while batches are encoded, so that neither has to wait for the other.

    waiting --> decoding --> ready --> encoding --> done
    (files)     (threads)    (items)   (batches)    (rows)

Batches are filled in the order in which decoding ends, so one slow image does not delay the others. At most
batch_size * (concurrency + 3) images are between `waiting` and `done`. Results come back in the order of the files.

An image ends in one of three ways. Embedded; rejected, which is a verdict on its bytes; or undone, where the machine
could not read, decode or encode it. What is undone is tried again after the others, one image at a time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.errors import InvalidImage, UnreadableImage
from cirrus_client.gallery.source import ImageFile, Source

_BATCHES_AHEAD = 3
_PAUSES_S = (0.2, 1.0)
_MACHINE_FAULTS = (UnreadableImage, MemoryError, OSError)
E = TypeVar("E", bound=Exception)
_Row = Embeddings | InvalidImage | UnreadableImage | MemoryError | OSError
"""The result for an image: its embedding, or the reason why there is none."""


@dataclass(frozen=True)
class Rejected:
    """A file whose bytes are not a usable image, and why. sha256: of those bytes."""

    file: ImageFile
    reason: str
    sha256: str


@dataclass(frozen=True)
class Undone:
    """A file that the machine could not read, decode or encode, also when tried again, and why."""

    file: ImageFile
    reason: str


@dataclass(frozen=True)
class Embedded:
    """Results for a list of files, each in its order.

    embeddings: float32 [rows, *item_shape], one row per accepted file.
    """

    embeddings: Embeddings
    accepted: tuple[ImageFile, ...]
    rejected: tuple[Rejected, ...] = ()
    undone: tuple[Undone, ...] = ()


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

    def embed(self, files: Sequence[ImageFile], on_done: Callable[[int], object] = lambda count: None) -> Embedded:
        """Embed images. on_done: called with the number of files finished since its last call.

        Raises what the encoder raises, except InvalidImage, which rejects the file, and MemoryError.
        """
        rows: dict[int, _Row] = {}
        for part in self._results(files):
            rows |= part
            on_done(len(part))
        for pause_s in _PAUSES_S:
            undone = [position for position, row in rows.items() if isinstance(row, _MACHINE_FAULTS)]
            if undone:
                time.sleep(pause_s)
            rows |= {position: self._alone(files[position]) for position in undone}
        return self._sorted_out(files, rows)

    def _sorted_out(self, files: Sequence[ImageFile], rows: dict[int, _Row]) -> Embedded:
        accepted: list[ImageFile] = []
        embeddings: list[Embeddings] = []
        rejected: list[Rejected] = []
        undone: list[Undone] = []
        for position, file in enumerate(files):
            row = rows[position]
            if isinstance(row, InvalidImage):
                try:
                    rejected.append(Rejected(file, str(row), self._sha256(file)))
                except _MACHINE_FAULTS as fault:
                    undone.append(Undone(file, _described(fault)))
            elif isinstance(row, _MACHINE_FAULTS):
                undone.append(Undone(file, _described(row)))
            else:
                accepted.append(file)
                embeddings.append(row)
        shape = (0, *self._encoder.space.item_shape)
        stacked = np.stack(embeddings).astype(np.float32) if embeddings else np.empty(shape, dtype=np.float32)
        return Embedded(stacked, tuple(accepted), tuple(rejected), tuple(undone))

    def _sha256(self, file: ImageFile) -> str:
        return hashlib.sha256(self._source.read(file)).hexdigest()

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
                except (InvalidImage, *_MACHINE_FAULTS) as error:
                    in_line -= 1
                    yield {position: _kept(error)}
            elif ready and len(encoding) <= self._encoder.concurrency:
                batch = {position: ready.pop(position) for position in list(ready)[: self._batch_size]}
                encoding.append(self._encoders.submit(self._encode, batch))
            elif encoding:
                wait([encoding[0]])
            else:
                return

    def _alone(self, file: ImageFile) -> _Row:
        try:
            prepared = self._prepare(self._source, file)
        except (InvalidImage, *_MACHINE_FAULTS) as error:
            return _kept(error)
        return self._encode({0: prepared})[0]

    def _encode(self, batch: dict[int, Any]) -> dict[int, _Row]:
        """Encode a batch. If an image turns out to be broken only now, or memory is short, encode each image alone."""
        try:
            return dict(zip(batch, self._encoder.encode_prepared(list(batch.values())), strict=True))
        except (InvalidImage, MemoryError) as error:
            if len(batch) == 1:
                return dict.fromkeys(batch, _kept(error))
        rows: dict[int, _Row] = {}
        for position, prepared in batch.items():
            rows |= self._encode({position: prepared})
        return rows


def _kept(error: E) -> E:
    """Return an error without its traceback, whose frames would hold the bytes of its image until the shard's end."""
    error.__context__ = None
    return error.with_traceback(None)


def _described(fault: UnreadableImage | MemoryError | OSError) -> str:
    return "there was not enough memory" if isinstance(fault, MemoryError) else str(fault)


def _announce(decoded: SimpleQueue[tuple[int, Future[Any]]], position: int, future: Future[Any]) -> None:
    decoded.put((position, future))
