"""Time competing functions in turn, so that a machine that gets slower gets slower for all of them."""

from __future__ import annotations

import logging
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeVar

from cirrus_client.extras import installed_version
from cirrus_client.records import Record

K = TypeVar("K")
Work = Callable[[], object]
log = logging.getLogger(__name__)
_PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "faiss-cpu",
    "faiss-gpu",
    "open_clip_torch",
    "transformers",
    "nvidia-pytriton",
    "pillow",
    "numpy",
)


class Timing(Record):
    """Seconds of each repeat, and the most memory that a repeat took on top of what the process held before it."""

    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Median seconds: the figure to quote."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median: how noisy the machine was."""
        return (max(self.seconds) - min(self.seconds)) / self.median


class Machine(Record):
    """The machine and the package versions that a report was made with."""

    processor: str
    cores: int
    gpu: str
    python: str
    packages: dict[str, str]

    @property
    def package_list(self) -> str:
        """Names and versions of the packages in one line."""
        return ", ".join(f"{name} {found}" for name, found in self.packages.items())

    def on_cpu(self, who: str) -> list[str]:
        """Return lines that say that others than Cirrus ran on the CPU beside a GPU; none where there is no GPU."""
        if self.gpu == "none":
            return []
        return ["", f"**{who} ran on the CPU**, and Cirrus on the GPU where its engine does: ratios compare the two."]

    def __str__(self) -> str:
        return (
            f"Machine: {self.processor}, {self.cores} cores, GPU: {self.gpu}. Python {self.python}, "
            f"{self.package_list}. Quote ratios: shared machines are noisy."
        )


def time_interleaved(works: Mapping[K, Work], repeats: int) -> dict[K, Timing]:
    """Run every function once to warm up, then all of them in turn for `repeats` rounds, and return their times."""
    log.info("warming up %d rows", len(works))
    for work in works.values():
        work()
    seconds: dict[K, list[float]] = {name: [] for name in works}
    peaks: dict[K, int] = dict.fromkeys(works, 0)
    for number in range(1, repeats + 1):
        log.info("measuring %d rows, round %d of %d", len(works), number, repeats)
        for name, work in works.items():
            before = reset_peak()
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
            peaks[name] = max(peaks[name], status_bytes("VmHWM") - before)
    return {name: Timing(seconds=tuple(values), peak_bytes=peaks[name]) for name, values in seconds.items()}


def this_machine() -> Machine:
    """Return a description of this machine."""
    import torch

    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := installed_version(name)) is not None},
    )


def reset_peak() -> int:
    """Reset the process's peak memory to what it holds now, and return that in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(field: str) -> int:
    """Return a field of /proc/self/status in bytes, like VmRSS."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {field}"
    return int(found[1]) * 1024


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
