"""Read the record of a bundle's TensorRT plans, and decide whether they run on this machine.

`cirrus compile` writes `engines/plans.json`, and `engines-rtx/plans.json` with TensorRT for RTX. It is read before a
plan is loaded, because TensorRT rejects a plan of another version or GPU with an error that names neither.
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

PLANS = "plans.json"
_AMPERE = (8, 0)
_ACROSS_MAJORS = {(10, 11)}


class Library(StrEnum):
    """The TensorRT library that builds and runs a plan. RTX: TensorRT for RTX, which compiles without a GPU as well.

    Neither runs the other's plans.
    """

    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"

    @property
    def label(self) -> str:
        """The library's name in messages."""
        return "TensorRT" if self is Library.TENSORRT else "TensorRT for RTX"

    @property
    def folder(self) -> str:
        """The folder of its plans in a bundle."""
        return "engines" if self is Library.TENSORRT else "engines-rtx"


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
    """The batch sizes that one of a plan's optimization profiles takes, and the one that it is tuned for."""

    smallest: int = Field(gt=0)
    tuned: int = Field(gt=0)
    largest: int = Field(gt=0)


class PlanSpec(Record):
    """A compiled graph.

    profiles: its optimization profiles; a batch runs in the first that takes it.
    cosine_min: smallest cosine between an output and that of the ONNX graph, on real inputs; None if the plan was
    compiled without a GPU and has not been run.
    """

    file: RelativePath
    sha256: str
    graph_sha256: str
    profiles: tuple[BatchProfile, ...] = Field(min_length=1)
    attention: AttentionSpec
    cosine_min: float | None


class PlansSpec(Record):
    """The contents of `plans.json`.

    tensorrt: the library's version. gpu: the GPU that compiled and ran the plans; None if they were compiled without
    one. compute_capabilities: the GPUs that they were compiled for. refused: graphs without a plan, and why the
    compiler refused each.
    """

    format: Literal[3] = 3
    library: Library = Library.TENSORRT
    tensorrt: str
    gpu: str | None
    compute_capabilities: tuple[str, ...] = Field(min_length=1)
    version_compatible: bool
    hardware_compatible: bool
    plans: dict[Name, PlanSpec]
    refused: dict[Name, str] = Field(default_factory=dict)

    @property
    def origin(self) -> str:
        """What the plans were built with and for, for messages."""
        capabilities = " and ".join(self.compute_capabilities)
        place = f"without a GPU, for compute capability {capabilities}"
        if self.gpu is not None:
            place = f"on {self.gpu} (compute capability {capabilities})"
        return f"built with {self.library.label} {self.tensorrt} {place}"

    @property
    def were_run(self) -> bool:
        """Whether a GPU has run the plans, and they reproduced their graphs."""
        return all(plan.cosine_min is not None for plan in self.plans.values())


@dataclass(frozen=True)
class Gpu:
    """The GPU that this process uses."""

    name: str
    compute_capability: str


def has_plans(root: Path, library: Library = Library.TENSORRT) -> bool:
    """Return whether a bundle's folder has plans of a library, compiled on this machine or another."""
    return (root / library.folder / PLANS).exists()


def read_plans(root: Path, library: Library = Library.TENSORRT) -> PlansSpec:
    """Return the record of a bundle's plans of a library. Raises BundleError if there is none, or it is invalid.

    root: the bundle's folder, or the folder of a served model that has plans.
    """
    way_out = compile_again(root, library)
    return read_record(
        root / library.folder / PLANS,
        PlansSpec,
        raises=BundleError,
        missing=f"{root} has no {library.label} plans; {way_out}",
        way_out=f"compile again {way_out}",
    )


def compile_again(root: Path, library: Library) -> str:
    """Return the command that makes a bundle's plans, for messages."""
    if library is Library.RTX:
        return f"for this machine's card: cirrus compile {root} --for CARD"
    return f"on the machine that serves: cirrus compile {root}"


def plan_file(bundle: Bundle, record: PlansSpec, graph: str) -> Path:
    """Return a graph's plan. Raises BundleError if it is missing, damaged, or compiled from another graph."""
    again = f"compile again {compile_again(bundle.root, record.library)}"
    plan = record.plans.get(graph)
    if graph in record.refused:
        raise BundleError(
            f"bundle {bundle.root} has no plan of graph {graph}: {record.library.label} {record.tensorrt} refused it: "
            f"{record.refused[graph]}"
        )
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
    """Return why plans can't run on a version of their library and a GPU, or None if they can."""
    built = record.origin
    if not runs_on(record.tensorrt, tensorrt, version_compatible=record.version_compatible):
        allowed = "that version or a newer one of its major" if record.version_compatible else "exactly that version"
        return f"{built}; here is {record.library.label} {tensorrt}, and the plans need {allowed}"
    same_gpu = gpu.compute_capability in record.compute_capabilities
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
