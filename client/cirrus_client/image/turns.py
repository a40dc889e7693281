"""Large images take turns, so that the memory of a process does not grow with its threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cirrus_client.memory import return_freed_memory

LARGE_PIXELS = 16_000_000
IN_TURN_PIXELS = 50_000_000
_turn = threading.Lock()


@contextmanager
def room_for(pixels: int) -> Iterator[None]:
    """Decode an image inside. Those above IN_TURN_PIXELS wait for each other: one may take more than a gigabyte.

    After an image above LARGE_PIXELS, whether it was decoded or broken, freed memory goes back to the system.
    """
    if pixels <= LARGE_PIXELS:
        yield
        return
    try:
        if pixels > IN_TURN_PIXELS:
            with _turn:
                yield
        else:
            yield
    finally:
        return_freed_memory()


def _new_turn() -> None:
    global _turn
    _turn = threading.Lock()


# a thread of the parent may hold the turn at the moment of the fork, and would never give it back in the child
os.register_at_fork(after_in_child=_new_turn)
