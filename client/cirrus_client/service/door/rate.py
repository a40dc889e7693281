"""Limit the requests of each key, or of each address, by a token bucket."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from cirrus_client.errors import TooManyRequests

_MOST_CALLERS = 10_000
_BURST_S = 2


class RateLimit:
    """Lets each caller send `rate` requests per second, and those of two seconds at once. For one event loop."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep the rate in requests per second. clock: returns seconds."""
        self._rate = rate
        self._burst = max(1.0, rate * _BURST_S)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count a request of a caller. Raises TooManyRequests if it comes too soon."""
        now = self._clock()
        tokens, since = self._buckets.pop(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens), now
        while len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise TooManyRequests(
                f"more than {self._rate:g} requests per second; send fewer",
                retry_after_s=max(1, math.ceil((1 - tokens) / self._rate)),
            )
