"""Standard streams that are closed, as in `cirrus search >&-`, and those whose reader has ended, as in `| head -1`."""

from __future__ import annotations

import io
import os
import select
import sys


def check_streams() -> None:
    """Open the null device in the place of closed streams, so that no file of the command gets their numbers.

    Letters that the encoding of stdout lacks are printed as escapes, as Python does on stderr. Ends the process in a
    message if stdout is closed: results would be lost.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    if 2 in closed:
        sys.stderr = open(2, "w")  # noqa: SIM115
    if 1 in closed:
        os.write(2, b"cirrus: stdout is closed, so results would be lost; send them to /dev/null if you need none\n")
        sys.exit(1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def reader_has_ended() -> bool:
    """Return whether stdout or stderr is a pipe that nobody reads any more."""
    streams = select.poll()
    for number in (1, 2):
        streams.register(number, 0)
    return any(event & select.POLLERR for _, event in streams.poll(0))


def drop_unread() -> None:
    """Drop what a reader that has ended left: the interpreter would try to print it once more, and fail once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
