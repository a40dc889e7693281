"""What the commands print: tables on stdout, log messages on stderr."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import typer

_PACKAGES = ("cirrus_client", "cirrus_export", "cirrus_bench", "cirrus_demo")


def set_log_level(*, verbose: bool, quiet: bool) -> None:
    """Log Cirrus's progress messages to stderr: debug messages as well if verbose, warnings only if quiet."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)


def shows_progress() -> bool:
    """Return whether progress bars are wanted: they are where progress messages are."""
    return logging.getLogger(_PACKAGES[0]).isEnabledFor(logging.INFO)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Print a table whose lines are never wrapped or cut, so that programs can read it.

    right: headings of the columns that are aligned to the right.
    """
    cells = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for heading, cell, width in zip(headings, row, widths, strict=True)
        ]
        typer.echo("  ".join(aligned).rstrip())


def printable(text: str) -> str:
    """Return text with control characters, and bytes of a file name that are not UTF-8, as escapes like \\x1b."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def printable_lines(text: str) -> str:
    """Return text of several lines, each of them `printable`."""
    return "\n".join(printable(line) for line in text.split("\n"))


def echo(text: str, *, err: bool = False) -> None:
    """Print a `printable` line. err: to stderr."""
    typer.echo(printable(text), err=err)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))
