"""Faults of the machine at a chosen step of this process, made by an audit hook: see PEP 578.

A step is a call with which a process changes the file system, or, for faults at reading, an open of an input file. The
hook runs before the call, so step 0 is a process that changed nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "shutil.rmtree"}
_EXCHANGE = ("ctypes.dlsym", "renameat2")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def is_write(event: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether an audit event is a change of the file system."""
    if event == "open":
        _, mode, flags = arguments
        return bool(flags & _WRITING) or any(letter in (mode or "") for letter in "wax+")
    return event in _CHANGES or (event, arguments[-1:]) == (_EXCHANGE[0], _EXCHANGE[1:])


def is_read_below(folder: Path) -> Callable[[str, tuple[Any, ...]], bool]:
    """Return a test of whether an audit event is the reading of a file below a folder."""
    prefix = str(folder)
    return lambda event, arguments: event == "open" and str(arguments[0]).startswith(prefix)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def io_error() -> None:
    raise OSError(errno.EIO, "Input/output error")


def disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_memory() -> None:
    raise MemoryError


def at_step(
    step: int, fault: Callable[[], None], counts: Callable[[str, tuple[Any, ...]], bool] = is_write
) -> Callable[[], bool]:
    """Let a fault happen at one step of this process. Return a function that says whether it has happened.

    It can't be undone: call it in a process of its own.
    """
    left = step

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if counts(event, arguments):
            left -= 1
            if left == -1:
                fault()

    sys.addaudithook(hook)
    return lambda: left < 0
