"""Read and decode images in threads while batches are encoded, so that none has to wait for the others.

    waiting --> reading --> decoding --> ready --> encoding --> done
    (files)     (threads)   (threads)    (items)   (batches)    (rows)

Batches are filled in the order in which decoding ends, so one slow image does not delay the others. A batch that is
not full is filled up with copies: all batches have one shape, in which an image has the same embedding to the bit. At
most batch_size * (concurrency + 3) images, and 256 MiB of files, are between `waiting` and `done`. Results come back in
the order of the files.

An image whose bytes are those of another one is not decoded: both have one embedding.

An image ends in one of three ways. Embedded; rejected, which is a verdict on its bytes; or undone, where the machine
could not read, decode or encode it. What is undone is tried again after the others, one image at a time, until many in
a row fail again: then their store or disk is gone, and each try may take seconds.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from cirrus_client.cores import usable_cores
from cirrus_client.encoders.protocol import Embeddings, Encoder
from cirrus_client.errors import InvalidImage, UnreadableImage, UnsupportedImage
from cirrus_client.gallery.source import ImageFile, Source

_BATCHES_AHEAD = 3
_READERS = 32
_ROOM_BYTES = 256 * 2**20
_PAUSES_S = (0.2, 1.0)
_MOST_IN_VAIN = 32
_MACHINE_FAULTS = (UnreadableImage, MemoryError, OSError)
E = TypeVar("E", bound=Exception)
_Row = Embeddings | InvalidImage | UnreadableImage | MemoryError | OSError
"""The result for an image: its embedding, or the reason why there is none."""


@dataclass(frozen=True)
class Rejected:
    """A file whose bytes are not a usable image, and why. sha256: of those bytes; empty if the source refused them."""

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

    embeddings: float32 [rows, *item_shape], one row per accepted file. digests: the sha256 of each accepted file; may
    be left out. copies: number of accepted files whose embedding was taken from a file with the same bytes.
    """

    embeddings: Embeddings
    accepted: tuple[ImageFile, ...]
    rejected: tuple[Rejected, ...] = ()
    undone: tuple[Undone, ...] = ()
    digests: tuple[str, ...] = ()
    copies: int = 0


class Recollection(Protocol):
    """What is known of images before they are read. Several threads ask at the same time."""

    def recall(self, source: Source, file: ImageFile) -> tuple[str, Any] | None:
        """Return the sha256 of an image and the image prepared for the encoder, or None if it must be read."""
        ...

    def remember(self, source: Source, file: ImageFile, digest: str) -> None:
        """Take note of the sha256 of an image that was read."""
        ...


@dataclass(frozen=True)
class _Content:
    """An image that was read, or recalled. content: None if it is prepared."""

    digest: str
    content: bytes | None
    prepared: Any = None


@dataclass(frozen=True)
class _Prepared:
    value: Any


class EmbedStream:
    """Embeds images of a source. Only one thread may use it. The end of a `with` block stops its thread pools."""

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        *,
        recollection: Recollection | None = None,
        embedded: Callable[[str], Embeddings | None] = lambda digest: None,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> None:
        """Start the thread pools.

        recollection, batch_size, workers: see `embed_gallery`. embedded: returns the embedding of an image by its
        sha256, float32 [*item_shape], or None if it has not been embedded yet.
        """
        self._source = source
        self._encoder = encoder
        self._recollection = recollection
        self._embedded = embedded
        self._batch_size = batch_size
        self._room = batch_size * (encoder.concurrency + _BATCHES_AHEAD)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._decoders = ThreadPoolExecutor(workers or usable_cores(), thread_name_prefix="decode")
        self._encoders = ThreadPoolExecutor(encoder.concurrency, thread_name_prefix="encode")

    def __enter__(self) -> EmbedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._readers.shutdown(wait=error is None, cancel_futures=True)  # they may wait for a network for minutes
        for pool in (self._decoders, self._encoders):
            pool.shutdown(cancel_futures=True)

    def embed(self, files: Sequence[ImageFile], on_done: Callable[[int], object] = lambda count: None) -> Embedded:
        """Embed images. on_done: called with the number of files finished since its last call.

        Raises what the encoder raises, except InvalidImage, which rejects the file, and MemoryError.
        """
        found = _Found(files)
        for part in self._results(found):
            found.rows |= part
            on_done(len(part))
        for pause_s in _PAUSES_S:
            undone = [position for position, row in found.rows.items() if isinstance(row, _MACHINE_FAULTS)]
            if undone:
                time.sleep(pause_s)
            in_vain = 0
            for position in undone:
                row = found.rows[position] = self._alone(found, position)
                in_vain = in_vain + 1 if isinstance(row, _MACHINE_FAULTS) else 0
                if in_vain == _MOST_IN_VAIN:
                    break
        return self._sorted_out(found)

    def _sorted_out(self, found: _Found) -> Embedded:
        accepted: list[int] = []
        rejected: list[Rejected] = []
        undone: list[Undone] = []
        for position, file in enumerate(found.files):
            row = found.rows[position]
            if isinstance(row, UnsupportedImage):
                undone.append(Undone(file, str(row)))
            elif isinstance(row, InvalidImage):
                rejected.append(Rejected(file, str(row), found.digests.get(position, "")))
            elif isinstance(row, _MACHINE_FAULTS):
                undone.append(Undone(file, _described(row)))
            else:
                accepted.append(position)
        rows = [cast(Embeddings, found.rows[position]) for position in accepted]
        shape = (0, *self._encoder.space.item_shape)
        return Embedded(
            np.stack(rows).astype(np.float32) if rows else np.empty(shape, dtype=np.float32),
            tuple(found.files[position] for position in accepted),
            tuple(rejected),
            tuple(undone),
            tuple(found.digests[position] for position in accepted),
            sum(position in found.copied for position in accepted),
        )

    def _results(self, found: _Found) -> Iterator[dict[int, _Row]]:
        """Yield results by position in the files, as they become known.

        Each turn of the loop moves images one step along the states in the module's docstring. It waits for a thread
        only if no full batch is ready, and for an encoder only if nothing is left to read, decode or start.
        """
        waiting = iter(enumerate(found.files))
        ended: SimpleQueue[tuple[int, Future[Any]]] = SimpleQueue()
        ready: dict[int, Any] = {}
        encoding: deque[Future[dict[int, _Row]]] = deque()
        twins: dict[int, list[int]] = {}
        in_threads = in_line = in_line_bytes = 0
        entry = next(waiting, None)

        def start(pool: ThreadPoolExecutor, job: Callable[..., Any], position: int, *given: Any) -> None:
            pool.submit(job, *given).add_done_callback(partial(_announce, ended, position))

        def finished(rows: dict[int, _Row]) -> dict[int, _Row]:
            """Return results together with those of images with the same bytes."""
            nonlocal in_line, in_line_bytes
            rows |= {twin: row for position, row in list(rows.items()) for twin in twins.pop(position, ())}
            in_line -= len(rows)
            in_line_bytes -= sum(_bytes_of(found.files[position]) for position in rows)
            return rows

        while True:
            while entry is not None and in_line < self._room and (in_line_bytes < _ROOM_BYTES or not in_line):
                position, file = entry
                start(self._readers, self._read, position, file)
                in_threads, in_line, in_line_bytes = in_threads + 1, in_line + 1, in_line_bytes + _bytes_of(file)
                entry = next(waiting, None)
            while encoding and encoding[0].done():
                yield finished(encoding.popleft().result())
            if in_threads and len(ready) < self._batch_size:
                position, future = ended.get()
                in_threads -= 1
                try:
                    result = future.result()
                except (InvalidImage, *_MACHINE_FAULTS) as error:
                    yield finished({position: _kept(error)})
                    continue
                if isinstance(result, _Prepared):
                    ready[position] = result.value
                    continue
                yield from map(finished, self._without_decoding(found, position, result, twins))
                if position in found.rows or position in found.copied:
                    continue
                if result.content is None:
                    ready[position] = result.prepared
                else:
                    start(self._decoders, self._decode, position, result.content)
                    in_threads += 1
            elif ready and len(encoding) <= self._encoder.concurrency:
                batch = {position: ready.pop(position) for position in list(ready)[: self._batch_size]}
                encoding.append(self._encoders.submit(self._encode, batch))
            elif encoding:
                wait([encoding[0]])
            elif entry is None:
                return

    def _without_decoding(
        self, found: _Found, position: int, image: _Content, twins: dict[int, list[int]]
    ) -> Iterator[dict[int, _Row]]:
        """Yield the result for an image if one with the same bytes has it; note the twin if one will have it."""
        found.digests[position] = image.digest
        first = found.firsts.setdefault(image.digest, position)
        if first != position:
            found.copied.add(position)
            if first in found.rows:
                yield {position: found.rows[first]}
            else:
                twins.setdefault(first, []).append(position)
        elif (row := self._embedded(image.digest)) is not None:
            found.copied.add(position)
            yield {position: row}

    def _read(self, file: ImageFile) -> _Content:
        recollection = self._recollection
        if recollection is not None and (recalled := recollection.recall(self._source, file)) is not None:
            return _Content(recalled[0], None, recalled[1])
        content = self._source.read(file)
        digest = hashlib.sha256(content).hexdigest()
        if recollection is not None:
            recollection.remember(self._source, file, digest)
        return _Content(digest, content)

    def _decode(self, content: bytes) -> _Prepared:
        return _Prepared(self._encoder.prepare(content))

    def _alone(self, found: _Found, position: int) -> _Row:
        found.copied.discard(position)
        try:
            image = self._read(found.files[position])
            found.digests[position] = image.digest
            prepared = image.prepared if image.content is None else self._encoder.prepare(image.content)
        except (InvalidImage, *_MACHINE_FAULTS) as error:
            return _kept(error)
        return self._encode({position: prepared})[position]

    def _encode(self, batch: dict[int, Any], *, fill: bool = True) -> dict[int, _Row]:
        """Encode a batch. If an image turns out to be broken only now, or memory is short, encode each image alone."""
        images = list(batch.values())
        try:
            copies = images[-1:] * (self._batch_size - len(images) if fill else 0)
            return dict(zip(batch, self._encoder.encode_prepared(images + copies), strict=False))
        except (InvalidImage, MemoryError) as error:
            if len(batch) == 1 and not (fill and isinstance(error, MemoryError)):
                return dict.fromkeys(batch, _kept(error))
            fill = isinstance(error, InvalidImage)
        rows: dict[int, _Row] = {}
        for position, prepared in batch.items():
            rows |= self._encode({position: prepared}, fill=fill)
        return rows


@dataclass
class _Found:
    """What is known of a list of files. firsts: the position of the first file with these bytes, by their sha256."""

    files: Sequence[ImageFile]
    rows: dict[int, _Row] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    firsts: dict[str, int] = field(default_factory=dict)
    copied: set[int] = field(default_factory=set)


def _bytes_of(file: ImageFile) -> int:
    return max(file.size, 0)


def _kept(error: E) -> E:
    """Return an error without its traceback, whose frames would hold the bytes of its image until the shard's end."""
    error.__context__ = None
    return error.with_traceback(None)


def _described(fault: UnreadableImage | MemoryError | OSError) -> str:
    return "there was not enough memory" if isinstance(fault, MemoryError) else str(fault)


def _announce(decoded: SimpleQueue[tuple[int, Future[Any]]], position: int, future: Future[Any]) -> None:
    decoded.put((position, future))
