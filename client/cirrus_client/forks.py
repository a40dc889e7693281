"""Detect objects that are used in a process that was forked after they were made."""

from __future__ import annotations

import os
from typing import TypeVar

from cirrus_client.errors import CirrusError

E = TypeVar("E", bound=CirrusError)


class MadeHere:
    """Remembers in which process an object was made. A fork does not copy the threads and connections that it holds."""

    def __init__(self, what: str) -> None:
        """Remember the current process. what: the name of the object in error messages."""
        self._what = what
        self._process = os.getpid()

    def check(self, raises: type[CirrusError]) -> None:
        """Raise `raises` in a forked process, where a call could wait forever for a thread that does not exist."""
        if os.getpid() != self._process:
            raise raises(
                f"{self._what} was loaded in process {self._process} and can't be used in {os.getpid()}, which was "
                "forked from it; start workers with multiprocessing's 'spawn', or load it in each worker"
            )
