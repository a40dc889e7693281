"""What every bench report is: JSON for programs, Markdown for people, and sometimes a plot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from cirrus_bench.measure import Machine
from cirrus_client.files import atomic_path, write_atomically, write_model
from cirrus_client.records import Record


class Report(Record, ABC):
    """Base of the benches' reports. file_name: the stem of the files that it writes."""

    file_name: ClassVar[str]
    machine: Machine

    @abstractmethod
    def markdown(self) -> str:
        """Render the report as Markdown."""

    def write(self, out: Path) -> list[Path]:
        """Write `<file_name>.json` and `<file_name>.md` into a folder, created if need be, and return their paths."""
        json_file, page = (out / f"{self.file_name}.{suffix}" for suffix in ("json", "md"))
        write_model(json_file, self)
        write_atomically(page, self.markdown().encode())
        return [json_file, page]


@contextmanager
def plot(file: Path, title: str, size_in: tuple[float, float]) -> Iterator[Any]:
    """Yield matplotlib axes to draw on, then write them as a PNG. size_in: width and height in inches."""
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
