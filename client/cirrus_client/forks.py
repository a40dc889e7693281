"""What must not be used in a process that was forked after it was made."""

from __future__ import annotations

import os
from typing import TypeVar

from cirrus_client.errors import CirrusError

E = TypeVar("E", bound=CirrusError)


class MadeHere:
    """The process in which something was made that holds threads or connections, which a fork does not copy."""

    def __init__(self, what: str) -> None:
        """what: the name of the thing in an error."""
        self._what = what
        self._process = os.getpid()

    def check(self, raises: type[CirrusError]) -> None:
        """Raise `raises` in a process that was forked since: the call would wait for a thread that is not there."""
        if os.getpid() != self._process:
            raise raises(
                f"{self._what} was loaded in process {self._process} and can't be used in {os.getpid()}, which was "
                "forked from it; start workers with multiprocessing's 'spawn', or load it in each worker"
            )
