"""Keep what was last used, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from cirrus_client.ensemble import Arrays

_ENTRY_BYTES = 512


class RecentArrays:
    """Named arrays by key. The least recently used are dropped first. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        """Keep nothing yet. max_bytes: of all arrays together."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Arrays, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def max_bytes(self) -> int:
        """The most bytes that are kept."""
        return self._max_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return self._bytes

    def get(self, key: Hashable) -> Arrays | None:
        """Return the arrays of a key, or None if they are not kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, arrays: Arrays) -> None:
        """Keep the arrays of a key. They must own their memory: a view would keep the whole of what it is part of."""
        size = sum(array.nbytes for array in arrays.values()) + _ENTRY_BYTES
        with self._lock:
            self._bytes += size - self._kept.pop(key, ({}, 0))[1]
            self._kept[key] = arrays, size
            while self._bytes > self._max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1][1]
