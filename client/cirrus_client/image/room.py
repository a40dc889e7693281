"""Room for large images: the memory of a process is bounded, however many threads decode in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cirrus_client.memory import return_freed_memory

ROOM_BYTES = 2 * 2**30
LARGE_BYTES = 128 * 2**20


class _Room:
    """Bytes that large images may take at once."""

    def __init__(self) -> None:
        self._free = ROOM_BYTES
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size

    def give_back(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()


_room = _Room()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Decode an image inside. size: the bytes of memory that it may need.

    Images above LARGE_BYTES wait until all of them fit into ROOM_BYTES. After one, whether it was decoded or broken,
    freed memory goes back to the system.
    """
    if size <= LARGE_BYTES:
        yield
        return
    room, size = _room, min(size, ROOM_BYTES)
    room.take(size)
    try:
        yield
    finally:
        room.give_back(size)
        return_freed_memory()


def _new_room() -> None:
    global _room
    _room = _Room()


# at the moment of a fork, threads of the parent may hold room that they never give back in the child
os.register_at_fork(after_in_child=_new_room)
