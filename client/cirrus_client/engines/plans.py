"""What is known of TensorRT plans: `engines/plans.json`, which is written beside them.

A plan runs on the TensorRT version and the kind of GPU that it was compiled with, and on nothing else, unless it was
compiled to be compatible (NVIDIA TensorRT documentation, "Version Compatibility" and "Hardware Compatibility").
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from cirrus_client.bundle import Contract
from cirrus_client.errors import EngineError

RECORD = "plans.json"


class Plan(Contract):
    """One compiled graph.

    batch: smallest, usual and largest batch of its optimisation profile. attention_fused: whether the engine inspector
    shows attention as layers of their own; None where the graph has none. layers: of the whole plan.
    """

    file: str
    sha256: str
    batch: tuple[int, int, int]
    layers: int
    attention_fused: bool | None


class Plans(Contract):
    """`plans.json`: where and with what the plans of a bundle were compiled."""

    tensorrt: str
    gpu: str
    compute_capability: str
    version_compatible: bool
    hardware_compatible: bool
    plans: dict[str, Plan]

    def check_here(self, *, tensorrt: str, compute_capability: str) -> None:
        """Raise EngineError if the plans can't run on this TensorRT and GPU.

        Version-compatible plans run on any later TensorRT of the same major version. Hardware-compatible ones run on
        every GPU of compute capability 8.0 (Ampere) and later.
        """
        built, here = _numbers(self.tensorrt), _numbers(tensorrt)
        if built != here and not (self.version_compatible and built[0] == here[0] and here > built):
            raise EngineError(
                f"the plans were compiled with TensorRT {self.tensorrt}, here is {tensorrt}: compile them again with "
                "`cirrus compile`, or once with --version-compatible"
            )
        if self.compute_capability != compute_capability and not (
            self.hardware_compatible and _numbers(compute_capability) >= (8, 0)
        ):
            raise EngineError(
                f"the plans were compiled on a {self.gpu} (compute capability {self.compute_capability}), this GPU has "
                f"{compute_capability}: compile them again with `cirrus compile`, or once with --hardware-compatible"
            )


def read_plans(folder: Path) -> Plans:
    """Read `plans.json` of a bundle's `engines` folder. Raises EngineError if it is missing or damaged."""
    path = folder / RECORD
    try:
        return Plans.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise EngineError(f"{folder} has no plans: compile them with `cirrus compile`") from None
    except ValidationError as error:
        raise EngineError(f"{path}: {error.errors()[0]['msg']}; compile the plans again") from None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])
