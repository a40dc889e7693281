"""Measure competing ways in turn, so that a drifting machine drifts for all of them."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TypeVar

from tqdm import tqdm

from cirrus_client.records import Record

K = TypeVar("K")
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
    """Seconds of each repeat of one row, and the most memory that a repeat took on top of what was there before it."""

    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """The figure to quote."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median: what the machine's noise does to the figure."""
        return (max(self.seconds) - min(self.seconds)) / self.median


class Machine(Record):
    """Where and with what a report was made."""

    processor: str
    cores: int
    gpu: str
    python: str
    packages: dict[str, str]

    @property
    def package_list(self) -> str:
        """Names and versions in a line."""
        return ", ".join(f"{name} {found}" for name, found in self.packages.items())

    def __str__(self) -> str:
        return (
            f"Machine: {self.processor}, {self.cores} cores, GPU: {self.gpu}. Python {self.python}, "
            f"{self.package_list}. Quote ratios: shared machines are noisy."
        )


def time_interleaved(ways: Mapping[K, Callable[[], object]], repeats: int) -> dict[K, Timing]:
    """Run every way once to warm up, then `repeats` rounds of all of them, and return their times."""
    for way in tqdm(ways.values(), desc="bench: warming up", unit="row"):
        way()
    seconds: dict[K, list[float]] = {name: [] for name in ways}
    peaks: dict[K, int] = dict.fromkeys(ways, 0)
    for _ in tqdm(range(repeats), desc="bench: measuring", unit="round"):
        for name, way in ways.items():
            before = _reset_peak()
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
            peaks[name] = max(peaks[name], _status_bytes("VmHWM") - before)
    return {name: Timing(seconds=tuple(of_way), peak_bytes=peaks[name]) for name, of_way in seconds.items()}


def this_machine() -> Machine:
    """Describe this machine."""
    import torch

    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _version(name)) is not None},
    )


def _reset_peak() -> int:
    """Set the process's record of its peak memory to what it has now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {field}"
    return int(found[1]) * 1024


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
