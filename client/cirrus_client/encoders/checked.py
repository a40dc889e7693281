"""Hold this machine to a bundle's canary before it is believed: the pixels of images, and what engines make of them."""

from __future__ import annotations

import platform
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.canary import Canary
from cirrus_client.engines import Engine
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError
from cirrus_client.image.preprocess import PreprocessSpec, preprocess


class CheckedEngine(Engine):
    """An engine that gives no answer before it has given the torch original's to golden inputs.

    The first call runs them in batches of its own size, so that every place of a batch is compared.
    """

    def __init__(self, engine: Engine, graph: str, canary: Canary) -> None:
        """Keep the engine. graph: its name in the bundle."""
        super().__init__()
        self.inputs, self.outputs, self.device = engine.inputs, engine.outputs, engine.device
        self._engine = engine
        self._graph = graph
        self._canary = canary
        self._checking = threading.Lock()
        self._is_right = False

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`. Raises EngineError as well if the golden inputs get other outputs than the original's."""
        with self._checking:
            if not self._is_right:
                self._check(len(inputs[self.inputs[0].name]))
                self._is_right = True
        return self._engine.run(inputs)

    def _check(self, batch: int) -> None:
        golden = {spec.name: self._canary.tensors[spec.name] for spec in self.inputs}
        items = len(next(iter(golden.values())))
        for start in range(0, items, batch):
            rows = np.arange(start, start + batch) % items
            found = self._engine({name: tensor[rows] for name, tensor in golden.items()})
            cosine = self._canary.cosine_of_outputs(self._graph, found, rows)
            _check_cosine(cosine, self._canary, f"{self.device} runs {self._graph}")


def check_pixels(canary: Canary, spec: PreprocessSpec) -> None:
    """Raise EngineError unless golden images become the pixels that they were when the bundle was exported."""
    pixels = np.stack([preprocess(image, spec) for image in canary.images])
    _check_cosine(canary.cosine_of_pixels(pixels), canary, "this Python prepares images")


def _check_cosine(cosine: float, canary: Canary, what: str) -> None:
    if not cosine >= canary.spec.cosine_min:  # a NaN misses
        raise EngineError(
            f"{what} wrongly on {platform.node()}: the cosine to the original's output for the bundle's golden inputs "
            f"is {cosine:.6f}, under {canary.spec.cosine_min}"
        )
