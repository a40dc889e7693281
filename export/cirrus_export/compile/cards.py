"""The compute capabilities for which TensorRT for RTX compiles, by the names of cards that have them.

Source of the capabilities: developer.nvidia.com/cuda-gpus. Source of what is supported, 8.6, 8.9 and 12.0 beside
Turing's 7.5: docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html, read on 2026-11-28.
"""

from __future__ import annotations

from collections.abc import Sequence

from cirrus_client.bundle import Precision
from cirrus_client.errors import ExportError

CARDS = {
    "a2": "8.6",
    "a10": "8.6",
    "a16": "8.6",
    "a40": "8.6",
    "rtx-a6000": "8.6",
    "rtx-3090": "8.6",
    "l4": "8.9",
    "l40": "8.9",
    "l40s": "8.9",
    "rtx-6000-ada": "8.9",
    "rtx-4090": "8.9",
    "rtx-pro-6000": "12.0",
    "rtx-5090": "12.0",
}
"""Name of a card -> its compute capability."""

_NOT_SUPPORTED = {"a100", "a30", "h100", "h200", "gh200", "b200", "b300", "gb200", "t4", "v100"}
_FIRST_WITH_FP8 = (8, 9)


def capabilities_of(targets: Sequence[str], precision: Precision) -> tuple[str, ...]:
    """Return the compute capabilities of cards (`l4`) and architectures (`sm89`), in order and each once.

    Raises ExportError if a target is unknown or not supported, or has no units for the bundle's precision.
    """
    found = {_capability(target.lower()): target for target in targets}
    for capability, target in found.items():
        if precision is Precision.FP8 and _numbers(capability) < _FIRST_WITH_FP8:
            raise ExportError(
                f"--for {target}: compute capability {capability} has no fp8, which starts at 8.9; export the bundle "
                "with --precision int8 or fp16 for this card"
            )
    return tuple(sorted(found, key=_numbers))


def is_supported(capability: str) -> bool:
    """Return whether TensorRT for RTX compiles for a compute capability, like "8.9"."""
    return capability in CARDS.values()


def sm(capability: str) -> str:
    """Return TensorRT's name of a compute capability: "8.9" is SM89."""
    return f"SM{capability.replace('.', '')}"


def _capability(target: str) -> str:
    if target in CARDS:
        return CARDS[target]
    for capability in CARDS.values():
        if target == sm(capability).lower():
            return capability
    if target in _NOT_SUPPORTED:
        raise ExportError(
            f"--for {target}: TensorRT for RTX does not run on this card; compile with TensorRT, on the machine that "
            "serves and without --for"
        )
    architectures = sorted({sm(capability).lower() for capability in CARDS.values()})
    raise ExportError(f"--for {target}: not a card or architecture of {', '.join([*CARDS, *architectures])}")


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
