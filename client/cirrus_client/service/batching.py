"""Batch what is in flight: while one batch runs, the next one fills."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cirrus_client.errors import TooManyRequests

T = TypeVar("T")
R = TypeVar("R")
_RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Done(Generic[R]):
    """The result of one item, the seconds that it waited, and those that its batch ran."""

    result: R
    waited_s: float
    ran_s: float


@dataclass(frozen=True)
class _Waiting(Generic[T, R]):
    item: T
    future: asyncio.Future[Done[R]]
    since: float


class Batcher(Generic[T, R]):
    """Runs items of many requests in batches. Tasks of one event loop may share it.

    An item that comes while nothing runs is run at once. Items that come meanwhile are the next batch, so that batches
    grow with the load and nobody waits for a batch to fill. Their sizes are powers of two, because an engine prepares
    itself for each new size. The items of a task that was cancelled are not run.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_batch: int,
        max_waiting: int,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Keep the function that runs a batch and returns one result per item.

        max_batch: items per batch. max_waiting: items that may wait. observe: is told the size of every batch.
        """
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._observe = observe
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Number of items that wait."""
        return sum(not waiting.future.done() for waiting in self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a batch runs or items wait."""
        return self._worker is not None

    async def submit(self, items: Sequence[T]) -> list[Done[R]]:
        """Run items in the next batches, and return their results in order.

        Raises TooManyRequests if too many items wait, and what the run of a batch raises.
        """
        if len(self) + len(items) > self._max_waiting:
            raise TooManyRequests(
                f"{len(self)} queries wait, the limit is {self._max_waiting}; try again later, or send fewer at a time",
                retry_after_s=_RETRY_AFTER_S,
            )
        loop = asyncio.get_running_loop()
        waiting = [_Waiting[T, R](item, loop.create_future(), time.perf_counter()) for item in items]
        self._waiting.extend(waiting)
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        try:
            return list(await asyncio.gather(*(one.future for one in waiting)))
        finally:
            for one in waiting:
                one.future.cancel()

    async def _work(self) -> None:
        try:
            while batch := self._next():
                await self._run_batch(batch)
        finally:
            self._worker = None

    def _next(self) -> list[_Waiting[T, R]]:
        batch: list[_Waiting[T, R]] = []
        size = _power_of_two(min(len(self), self._max_batch))
        while self._waiting and len(batch) < size:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                batch.append(waiting)
        return batch

    async def _run_batch(self, batch: Sequence[_Waiting[T, R]]) -> None:
        self._observe(len(batch))
        started = time.perf_counter()
        try:
            results = await self._run([waiting.item for waiting in batch])
        except Exception as error:
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        ran_s = time.perf_counter() - started
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(Done(result, started - waiting.since, ran_s))


def _power_of_two(count: int) -> int:
    """Return the largest power of two up to a number; 0 for 0."""
    return 1 << count.bit_length() >> 1
