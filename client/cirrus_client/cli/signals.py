"""How SIGINT (Ctrl-C), SIGTERM and SIGHUP end a command: in one line, with exit code 128 + n.

A command that has not begun yet, or is done, ends at once: an exception could be raised anywhere in the imports of
other packages, which lose it or turn it into another. A verb that runs gets `EndedBySignal`, so that it can clean up.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedBySignal(KeyboardInterrupt):
    """A signal that ends the command. number: which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_at_once() -> None:
    """From now on, end the process at once."""
    _handle(_exit)


def raise_in_verb() -> None:
    """From now on, raise EndedBySignal, if `end_at_once` was called before."""
    if signal.getsignal(signal.SIGTERM) is _exit:
        _handle(_raise)


def exit_code(number: int) -> int:
    """Return the exit code of a command that a signal ended."""
    return 128 + number


def leave_if_ended(code: object) -> None:
    """End the process at once if a signal ended its command: threads may wait for a network for minutes.

    code: the command's exit code.
    """
    if isinstance(code, int) and code in map(exit_code, _SIGNALS):
        os._exit(code)


def cause(number: int) -> str:
    """Return what happened, in words."""
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"


def _handle(handler: signal._HANDLER) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, f"cirrus: {cause(number)}; nothing is half done: run the same command again\n".encode())
    os._exit(exit_code(number))


def _raise(number: int, frame: FrameType | None) -> None:
    raise EndedBySignal(number)
