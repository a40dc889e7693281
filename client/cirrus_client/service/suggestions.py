"""Suggest edit texts, one after the other, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cirrus_client.service.batching import Batcher
from cirrus_client.suggest import Suggester

Pair = tuple[bytes, bytes]
_MAX_WAITING = 16


class Suggestions:
    """Runs a suggester. Tasks of one event loop may share it. At most 16 requests wait."""

    def __init__(self, suggester: Suggester) -> None:
        """Keep the suggester."""
        self._suggester = suggester
        self._turns: Batcher[Pair, str] = Batcher(self._run, max_batch=1, max_waiting=_MAX_WAITING)

    async def suggest(self, reference: bytes, target: bytes) -> str:
        """Return the edit text from one image to another. Raises InvalidImage, TooManyRequests, ServerError."""
        return (await self._turns.submit([(reference, target)]))[0].result

    async def _run(self, pairs: Sequence[Pair]) -> Sequence[str]:
        return [await asyncio.to_thread(self._suggester.suggest, *pair) for pair in pairs]
