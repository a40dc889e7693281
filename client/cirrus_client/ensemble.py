"""Graphs and host steps wired into one function of named arrays.

The same `EnsembleSpec` of a bundle is run here by `LocalEncoder`, and written as a Triton ensemble by the export:
one wiring, two executors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.records import Record

Arrays = Mapping[str, NDArray[Any]]
Model = Callable[[Arrays], Arrays]

IMAGE_PREPROCESS = "image_preprocess"
TOKENIZE = "tokenize"


class StepSpec(Record):
    """One model of an ensemble: which tensors feed its inputs, and what its outputs are called."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


class EnsembleSpec(Record):
    """Steps in order. `inputs` are client inputs ("image", "text"); the result is the tensor "embedding".

    An input named in `optional` may be absent; an absent text is the empty string.
    """

    inputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    steps: tuple[StepSpec, ...]


EMBEDDING = "embedding"


def image_step() -> StepSpec:
    """Encoded images, bytes [B], to pixels."""
    return StepSpec(model=IMAGE_PREPROCESS, inputs={"image": "image"}, outputs={"pixels": "pixels"})


def text_step() -> StepSpec:
    """UTF-8 texts, bytes [B], to token ids."""
    return StepSpec(model=TOKENIZE, inputs={"text": "text"}, outputs={"token_ids": "token_ids"})


def run(
    ensemble: EnsembleSpec, models: Mapping[str, Model], inputs: Arrays, *, given: Arrays | None = None
) -> dict[str, NDArray[Any]]:
    """Run the steps in order and return every named tensor, the result under "embedding".

    Tensors in `given` are taken as computed: a step whose outputs are all given is skipped.
    """
    tensors: dict[str, NDArray[Any]] = {**inputs, **(given or {})}
    for step in ensemble.steps:
        if all(name in tensors for name in step.outputs.values()):
            continue
        outputs = models[step.model]({port: tensors[name] for port, name in step.inputs.items()})
        tensors |= {name: outputs[port] for port, name in step.outputs.items()}
    return tensors


def bytes_array(items: list[bytes]) -> NDArray[np.object_]:
    """Return encoded items as an object array [B], the form that Triton's BYTES tensors take."""
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array
