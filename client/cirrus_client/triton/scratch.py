"""The scratch folder of a server, which nobody but its owner can read, and the shared memory of its Python models.

The folder is locked by the processes that need it. One whose processes have all ended is removed by the next server.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "cirrus-serve-"
_SHARED_MEMORY = Path("/dev/shm")
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)
"""Triton starts its Python models through a shell, which takes a path with a space apart."""


class Scratch:
    """A locked scratch folder, from its making to `remove`.

    folder: its path. lock: the descriptor that holds the lock; a process that inherits it holds the lock as well.
    """

    def __init__(self) -> None:
        """Remove what servers left behind whose processes have ended, and make a folder."""
        here = tempfile.gettempdir()
        parent = Path(here if _PLAIN.fullmatch(here) else "/tmp")
        for path in parent.glob(f"{_PREFIX}*"):
            _remove_if_abandoned(path)
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            with suppress(FileNotFoundError):  # another server took it for abandoned before it was opened, or locked
                self.lock = os.open(self.folder, os.O_RDONLY)
                fcntl.flock(self.lock, fcntl.LOCK_EX)
                if os.fstat(self.lock).st_nlink:
                    break
                os.close(self.lock)

    @property
    def shared_memory_prefix(self) -> str:
        """What the names of the shared memory of this server's Python models begin with."""
        return f"{self.folder.name}-"

    def remove(self) -> None:
        """Remove the folder and the shared memory."""
        _remove(self.folder)
        os.close(self.lock)


def _remove_if_abandoned(folder: Path) -> None:
    with suppress(OSError):  # held by a running server, another user's, or gone
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
        finally:
            os.close(descriptor)


def _remove(folder: Path) -> None:
    for path in _SHARED_MEMORY.glob(f"{folder.name}-*"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
