"""Jobs whose parts are kept: an error that ends one says whether the same job, run again, goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

RESUMES = "the same command resumes where this one stopped"


@contextmanager
def resumable() -> Iterator[Callable[[], None]]:
    """Yield a function to call whenever a part of the job is kept.

    An error that ends the block after such a call gets the note RESUMES.
    """
    is_begun = False

    def kept() -> None:
        nonlocal is_begun
        is_begun = True

    try:
        yield kept
    except Exception as error:
        if is_begun:
            error.add_note(RESUMES)
        raise


def is_resumable(error: BaseException | None) -> bool:
    """Return whether an error, or the one that it was raised for, ended a job of which a part is kept."""
    while error is not None and RESUMES not in getattr(error, "__notes__", ()):
        error = error.__context__
    return error is not None
