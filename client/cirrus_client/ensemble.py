"""Wire graphs and host steps (preprocessing, tokenizing) into one function of named arrays.

A bundle's `EnsembleSpec` has two executors: `LocalEncoder` runs it in this process, and the export writes it as a
Triton ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.records import Name, Record

Arrays = Mapping[str, NDArray[Any]]
Model = Callable[[Arrays], Arrays]

EMBEDDING = "embedding"
IMAGE_PREPROCESS = "image_preprocess"
TOKENIZE = "tokenize"


class StepSpec(Record):
    """One model of an ensemble. inputs: maps its inputs to tensors. outputs: maps its outputs to tensors."""

    model: Name
    inputs: dict[str, str]
    outputs: dict[str, str]


class EnsembleSpec(Record):
    """Steps in the order in which they run.

    inputs: what a client sends: "image", "text", or an input of a graph, which another ensemble made. optional: inputs
    that may be absent; an absent text is empty. output: the tensor that is the result.
    """

    inputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    steps: tuple[StepSpec, ...]
    output: str = EMBEDDING


def image_step() -> StepSpec:
    """Return the step that turns encoded images, bytes [B], into pixels, float32 [B, 3, size_px, size_px]."""
    return StepSpec(model=IMAGE_PREPROCESS, inputs={"image": "image"}, outputs={"pixels": "pixels"})


def text_step() -> StepSpec:
    """Return the step that turns UTF-8 texts, bytes [B], into token ids, int64 [B, T]."""
    return StepSpec(model=TOKENIZE, inputs={"text": "text"}, outputs={"token_ids": "token_ids"})


def run(
    ensemble: EnsembleSpec, models: Mapping[str, Model], inputs: Arrays, *, given: Arrays | None = None
) -> dict[str, NDArray[Any]]:
    """Run the steps in order and return all tensors by name.

    models: the function for each step's model. given: tensors that are already computed. A step whose outputs are all
    given is skipped.
    """
    tensors: dict[str, NDArray[Any]] = {**inputs, **(given or {})}
    for step in ensemble.steps:
        if all(name in tensors for name in step.outputs.values()):
            continue
        outputs = models[step.model]({port: tensors[name] for port, name in step.inputs.items()})
        tensors |= {name: outputs[port] for port, name in step.outputs.items()}
    return tensors


def in_batches(arrays: Arrays, size: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield arrays of as many rows each, [N, ...], as batches of at most `size` rows."""
    rows = len(next(iter(arrays.values())))
    for start in range(0, rows, size):
        yield {name: values[start : start + size] for name, values in arrays.items()}


def bytes_array(items: list[bytes]) -> NDArray[np.object_]:
    """Return encoded items as an object array [B], as tritonclient expects BYTES tensors."""
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array
