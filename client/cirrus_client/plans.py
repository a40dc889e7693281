"""Read the record of a bundle's TensorRT plans, and decide whether they run on this machine.

`cirrus compile` writes `engines/plans.json`. It is read before a plan is loaded, because TensorRT rejects a plan of
another version or GPU with an error that names neither.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from cirrus_client.bundle import Bundle, BundleSpec
from cirrus_client.errors import BundleError
from cirrus_client.files import check_files
from cirrus_client.records import Name, Record, RelativePath, read_record

ENGINES = "engines"
PLANS = "plans.json"
_AMPERE = (8, 0)
_ACROSS_MAJORS = {(10, 11)}


class Fusion(StrEnum):
    """How much of a plan's attention runs in fused kernels.

    NONE: the graph has no attention. UNKNOWN: the plan has no information about its layers.
    """

    FUSED = "fused"
    PARTLY = "partly"
    UNFUSED = "unfused"
    NONE = "none"
    UNKNOWN = "unknown"


class AttentionSpec(Record):
    """How a plan runs its attention.

    attentions: number of attention blocks in the graph. fused_layers: number of fused attention kernels in the plan.
    evidence: names of those layers in the engine inspector.
    """

    fusion: Fusion
    attentions: int
    fused_layers: int
    evidence: tuple[str, ...]


class BatchProfile(Record):
    """Smallest and largest batch size of a plan, and the one that it is tuned for."""

    smallest: int = Field(gt=0)
    tuned: int = Field(gt=0)
    largest: int = Field(gt=0)


class PlanSpec(Record):
    """A compiled graph. cosine_min: smallest cosine between an output and that of the ONNX graph, on real inputs."""

    file: RelativePath
    sha256: str
    graph_sha256: str
    batch: BatchProfile
    attention: AttentionSpec
    cosine_min: float


class PlansSpec(Record):
    """The contents of `engines/plans.json`."""

    format: Literal[1] = 1
    tensorrt: str
    gpu: str
    compute_capability: str
    version_compatible: bool
    hardware_compatible: bool
    plans: dict[Name, PlanSpec]


@dataclass(frozen=True)
class Gpu:
    """The GPU that this process uses."""

    name: str
    compute_capability: str


def has_plans(bundle: Bundle) -> bool:
    """Return whether a bundle has TensorRT plans, compiled on this machine or another."""
    return (bundle.root / ENGINES / PLANS).exists()


def read_plans(bundle: Bundle) -> PlansSpec:
    """Return the record of a bundle's plans. Raises BundleError if there is none, or it is invalid."""
    return read_record(
        bundle.root / ENGINES / PLANS,
        PlansSpec,
        raises=BundleError,
        missing=f"bundle {bundle.root} has no TensorRT plans; on the machine that serves: cirrus compile {bundle.root}",
        way_out=f"compile again: cirrus compile {bundle.root}",
    )


def plan_file(bundle: Bundle, record: PlansSpec, graph: str) -> Path:
    """Return a graph's plan. Raises BundleError if it is missing, damaged, or compiled from another graph."""
    again = f"compile again: cirrus compile {bundle.root}"
    plan = record.plans.get(graph)
    if plan is None:
        raise BundleError(f"bundle {bundle.root} has no plan of graph {graph}, only {', '.join(record.plans)}; {again}")
    path = bundle.root / plan.file
    check_files(bundle.root, {plan.file: plan.sha256}, what="bundle", raises=BundleError, way_out=again)
    if graph_sha256(bundle.spec, graph) != plan.graph_sha256:
        raise BundleError(f"bundle {bundle.root}: {plan.file} was compiled from another graph {graph}; {again}")
    return path


def graph_sha256(spec: BundleSpec, graph: str) -> str:
    """Return the hash of a graph's ONNX file and of the weights beside it."""
    file = spec.graphs[graph].file
    return hashlib.sha256((spec.files[file] + spec.files.get(f"{file}.data", "")).encode()).hexdigest()


def refusal(record: PlansSpec, tensorrt: str, gpu: Gpu) -> str | None:
    """Return why plans can't run on a TensorRT version and GPU, or None if they can."""
    built = f"built with TensorRT {record.tensorrt} on {record.gpu} (compute capability {record.compute_capability})"
    if not runs_on(record.tensorrt, tensorrt, version_compatible=record.version_compatible):
        allowed = "that version or a newer one of its major" if record.version_compatible else "exactly that version"
        return f"{built}; here is TensorRT {tensorrt}, and the plans need {allowed}"
    same_gpu = record.compute_capability == gpu.compute_capability
    ampere_or_newer = record.hardware_compatible and version_numbers(gpu.compute_capability) >= _AMPERE
    if not same_gpu and not ampere_or_newer:
        allowed = "8.0 or newer" if record.hardware_compatible else "the same"
        return f"{built}; here is {gpu.name} ({gpu.compute_capability}), and the plans need {allowed}"
    return None


def runs_on(built: str, here: str, *, version_compatible: bool) -> bool:
    """Return whether a plan that was built with one TensorRT version runs on another.

    A plan needs the same version to the build number. A version-compatible one runs on newer versions of its major, and
    one of TensorRT 10 on TensorRT 11 as well (TensorRT 11.4 documentation: "Support Policies", "Support Matrix").
    Versions of different length are compared as far as both go.
    """
    built_numbers, here_numbers = version_numbers(built), version_numbers(here)
    length = min(len(built_numbers), len(here_numbers))
    left, right = built_numbers[:length], here_numbers[:length]
    if not version_compatible:
        return left == right
    return left <= right and (left[0] == right[0] or (left[0], right[0]) in _ACROSS_MAJORS)


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "10.14.1.48.post1" is (10, 14, 1, 48)."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
