"""The cases of the gallery bench: what each row measures, as fields from which its title is rendered."""

from __future__ import annotations

from enum import StrEnum

from cirrus_client.bundle import Precision
from cirrus_client.image.preprocess import Decoding
from cirrus_client.records import Record


class Stage(StrEnum):
    """The part of the job that a case measures. END_TO_END: from image files to embeddings on disk."""

    DECODE = "decode + preprocess"
    ENCODER = "encoder"
    TARGET_HEAD = "target head"
    GALLERY_GRAPH = "gallery graph"
    END_TO_END = "end to end"


class Method(StrEnum):
    """What does the job.

    BASELINE: the authors' released code (see `cirrus_bench.baseline`). PYTORCH_EAGER, PYTORCH_COMPILED: the torch
    modules alone. CIRRUS: this project. CACHED_FEATURES: this project with a new head over features that are cached.
    PEER: another tool.
    """

    BASELINE = "baseline"
    PYTORCH_EAGER = "PyTorch eager"
    PYTORCH_COMPILED = "PyTorch compiled"
    CIRRUS = "Cirrus"
    CACHED_FEATURES = "cached features"
    PEER = "peer"


_DECODERS = {Decoding.EXACT: "Pillow", Decoding.FAST: "fast: scaled JPEG, SIMD"}


class Case(Record):
    """One thing that the bench measures; it serves as a dictionary key.

    precision, decoding: None where the case has no graphs, or no images to decode. device: the engine that runs the
    graph, as `Engine.device`. peer: the tool and its version.
    """

    stage: Stage
    method: Method
    precision: Precision | None = None
    decoding: Decoding | None = None
    device: str | None = None
    peer: str | None = None

    @property
    def title(self) -> str:
        """The name of the case in tables and plots."""
        if self.method is Method.BASELINE:
            return "baseline (PyTorch)"
        if self.method is Method.CACHED_FEATURES:
            return "Cirrus, new head on cached features"
        if self.peer is not None:
            return self.peer
        if self.stage is Stage.END_TO_END:
            fast = ", fast decoding" if self.decoding is Decoding.FAST else ""
            return f"Cirrus, {self.precision}{fast}"
        if self.decoding is not None:
            return _DECODERS[self.decoding]
        return f"{self.precision}: {self.device or self.method}"


BASELINE = Case(stage=Stage.END_TO_END, method=Method.BASELINE, precision=Precision.FP32, decoding=Decoding.EXACT)
CACHED_FEATURES = Case(stage=Stage.END_TO_END, method=Method.CACHED_FEATURES, precision=Precision.FP32)


def cirrus(precision: Precision, decoding: Decoding = Decoding.EXACT) -> Case:
    """Return the case of Cirrus end to end."""
    return Case(stage=Stage.END_TO_END, method=Method.CIRRUS, precision=precision, decoding=decoding)


def peer(title: str) -> Case:
    """Return the case of another tool end to end. title: its name and version."""
    return Case(stage=Stage.END_TO_END, method=Method.PEER, precision=Precision.FP32, peer=title)


def decode(decoding: Decoding) -> Case:
    """Return the case of decoding and preprocessing alone."""
    return Case(stage=Stage.DECODE, method=Method.CIRRUS, decoding=decoding)


def graph(stage: Stage, precision: Precision, device: str) -> Case:
    """Return the case of one exported graph alone on the engine that `device` names."""
    return Case(stage=stage, method=Method.CIRRUS, precision=precision, device=device)


def torch_module(stage: Stage, method: Method) -> Case:
    """Return the case of the torch original of a graph."""
    return Case(stage=stage, method=method, precision=Precision.FP32)
