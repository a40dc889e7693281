"""How a command ends that did not succeed.

Cirrus's own errors, missing packages and faults of the machine (a full disk, too little memory, a folder without
permission) end in a message and exit code 1, signals in exit code 128 + n. A reader of the output that has ended, as in
`| head -1`, ends the command in silence, with the exit code of SIGPIPE. Anything else is a defect of Cirrus and stays a
traceback. What stands in a message is shown as it is: control characters and terminal escapes are not obeyed.
"""

from __future__ import annotations

import errno
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from cirrus_client.cli.console import printable_lines
from cirrus_client.cli.signals import EndedBySignal, cause, exit_code
from cirrus_client.cli.streams import reader_has_ended
from cirrus_client.errors import (
    CirrusError,
    ClusterError,
    ServerOverloaded,
    ServerTimeout,
    ServerUnavailable,
    TransferError,
    UnreadableImage,
)
from cirrus_client.extras import missing_package
from cirrus_client.resuming import RESUMES, is_resumable

_NEXT = {
    **dict.fromkeys(("embed", "suggest", "push", "pull"), RESUMES),
    "export": "an export does not resume: run the same command again",
    "index": "an index is built whole or not at all: run the same command again",
    "serve": "the server was stopped",
}
_RUN_AGAIN = "run the same command again"
_PASSING = (
    *(OSError, MemoryError, ClusterError, TransferError, UnreadableImage),
    *(ServerOverloaded, ServerTimeout, ServerUnavailable),
)
"""Faults of the machine, or of what a job leans on, which may be over when the job runs again."""

log = logging.getLogger(__name__)


@contextmanager
def as_messages(verb: Callable[[], str | None]) -> Iterator[None]:
    """End the command in a message where its error is not a defect of Cirrus. verb: returns the verb that runs."""
    try:
        yield
    except CirrusError as error:
        _exit(f"cirrus: {type(error).__name__}: {error}{_next(error)}")
    except MemoryError as error:
        _exit(f"cirrus: there is not enough memory{f' ({error})' if str(error) else ''}{_next(error)}")
    except ImportError as error:
        _exit(_import_message(error, f"cirrus {verb()}"))
    except OSError as error:
        if error.errno == errno.EPIPE and reader_has_ended():
            raise typer.Exit(exit_code(signal.SIGPIPE)) from None
        _exit(f"cirrus: {machine_message(error)}{_next(error)}")
    except typer.BadParameter as error:
        error.message = printable_lines(error.message)
        raise
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, EndedBySignal) else signal.SIGINT
        _exit(f"cirrus: {cause(number)}; {_NEXT.get(verb() or '', _RUN_AGAIN)}", code=exit_code(number))


def _next(error: Exception) -> str:
    """Return what to add to the message of an error after which the same command goes on where it stopped."""
    return f"; {RESUMES}" if isinstance(error, _PASSING) and is_resumable(error) else ""


def machine_message(error: OSError) -> str:
    """Return the path that an error of the operating system is about, and its reason."""
    path = error.filename2 or error.filename
    reason = error.strerror or str(error)
    return reason if path is None else f"{path}: {reason}"


def _import_message(error: ImportError, job: str) -> str:
    missing = missing_package(error, job)
    if missing is None and (error.name or "").startswith("cirrus_"):
        raise error
    return str(missing or f"{job} can't start: {error}; `cirrus doctor` shows what is broken")


def _exit(message: str, *, code: int = 1) -> NoReturn:
    log.debug("the command ended here:", exc_info=True)
    typer.secho(printable_lines(message), err=True, fg=typer.colors.RED)
    raise typer.Exit(code) from None
