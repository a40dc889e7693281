"""Golden inputs in a bundle, with what the torch original made of them, to hold any encoder of the bundle to.

canary.json      texts, and the cosine that every stage must reach
canary.npz       images/<n>: image files, uint8; tensors/<name>: inputs of graphs; outputs/<graph>/<name>: what graphs
                 make of them; embeddings/<ensemble>: results of the whole
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import BundleError
from cirrus_client.files import atomic_path, write_model
from cirrus_client.names import EnsembleName, TensorName
from cirrus_client.records import Record, read_record

CANARY, ARRAYS = "canary.json", "canary.npz"
_WAY_OUT = "export the bundle again or copy it whole"


class CanarySpec(Record):
    """`canary.json`. texts: one per image. cosine_min: what every output must reach, as in the bundle's gate."""

    format: Literal[1] = 1
    texts: tuple[str, ...]
    cosine_min: float = Field(gt=0, lt=1)


@dataclass(frozen=True)
class Canary:
    """Golden inputs and outputs. tensors: inputs of graphs by name. outputs: of each graph, by name."""

    spec: CanarySpec
    images: tuple[bytes, ...]
    tensors: Arrays
    outputs: Mapping[str, Arrays]
    embeddings: Mapping[EnsembleName, NDArray[np.float32]]

    def cosine_of_pixels(self, found: NDArray[Any]) -> float:
        """Return the smallest cosine of the golden images' pixels, each image one vector.

        This and the methods below compare with the original's, and raise ValueError for another shape.
        """
        expected = self.tensors[TensorName.PIXELS]
        return _cosine(*(pixels.reshape(len(pixels), -1) for pixels in (expected, found)))

    def cosine_of_outputs(self, graph: str, found: Arrays, rows: slice | NDArray[np.int64] = slice(None)) -> float:
        """Return the smallest cosine of a graph's outputs; NaN if that of one is. rows: of the golden items."""
        return float(np.min([_cosine(value[rows], found[name]) for name, value in self.outputs[graph].items()]))

    def cosine_of_result(self, name: EnsembleName, found: NDArray[Any]) -> float:
        """Return the smallest cosine of an ensemble's results."""
        return _cosine(self.embeddings[name], found)


def write_canary(root: Path, canary: Canary) -> None:
    """Write a canary into a bundle's folder."""
    arrays: dict[str, NDArray[Any]] = {
        f"images/{place}": np.frombuffer(image, np.uint8) for place, image in enumerate(canary.images)
    }
    arrays |= {f"tensors/{name}": value for name, value in canary.tensors.items()}
    for graph, outputs in canary.outputs.items():
        arrays |= {f"outputs/{graph}/{name}": value for name, value in outputs.items()}
    arrays |= {f"embeddings/{name}": value for name, value in canary.embeddings.items()}
    with atomic_path(root / ARRAYS) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # a name may not be "file"
    write_model(root / CANARY, canary.spec)


def read_canary(bundle: Bundle) -> Canary | None:
    """Return the canary of a bundle, or None if it has none, as those of older exports. Raises BundleError."""
    if CANARY not in bundle.spec.files or ARRAYS not in bundle.spec.files:
        return None
    path = bundle.root / CANARY
    spec = read_record(path, CanarySpec, raises=BundleError, missing=f"{path} is missing; {_WAY_OUT}", way_out=_WAY_OUT)
    path = bundle.root / ARRAYS
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} can't be read ({error}); {_WAY_OUT}", path=path) from None
    outputs: dict[str, dict[str, NDArray[Any]]] = {}
    for name, value in _below(arrays, "outputs/"):
        graph, _, output = name.partition("/")
        outputs.setdefault(graph, {})[output] = value
    return Canary(
        spec=spec,
        images=tuple(arrays[f"images/{place}"].tobytes() for place in range(len(spec.texts))),
        tensors=dict(_below(arrays, "tensors/")),
        outputs=outputs,
        embeddings={EnsembleName(name): value for name, value in _below(arrays, "embeddings/")},
    )


def _below(arrays: Arrays, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
    return ((name.removeprefix(prefix), value) for name, value in arrays.items() if name.startswith(prefix))


def _cosine(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"shape {list(found.shape)}, expected {list(expected.shape)}")
    return cosine_min(expected, found)
