"""The files of a report: JSON for machines, Markdown and a plot for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cirrus_client.files import atomic_path, write_atomically, write_model
from cirrus_client.records import Record


def write_report_files(report: Record, markdown: str, out: Path, name: str) -> None:
    """Write `<name>.json` and `<name>.md` below `out`, which is made if need be."""
    write_model(out / f"{name}.json", report)
    write_atomically(out / f"{name}.md", markdown.encode())


@contextmanager
def plot(file: Path, title: str, size_in: tuple[float, float]) -> Iterator[Any]:
    """Give matplotlib axes to draw on, and write them as a PNG. size_in: width and height in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size_in, constrained_layout=True)
    yield axes
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(file) as path:
        figure.savefig(path, format="png", dpi=140)
    pyplot.close(figure)
