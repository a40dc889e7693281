"""What a bundle's models are called on a Triton server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cirrus_client.bundle import BundleSpec
from cirrus_client.ensemble import IMAGE_PREPROCESS, TOKENIZE
from cirrus_client.names import EnsembleName, GraphName
from cirrus_client.plans import graph_sha256
from cirrus_client.triton.wire import served_name


@dataclass(frozen=True)
class ServedNames:
    """The names of a bundle's models. shared: the server has other bundles' models as well.

    Shared steps are named by their content, so that equal ones are there once; ensembles are named by their bundle.
    """

    spec: BundleSpec
    shared: bool

    def has(self, step: str) -> bool:
        """Return whether a step has a model: bundles that share encoders have no fused graph for galleries."""
        return not (self.shared and step == GraphName.GALLERY)

    def model(self, step: str) -> str:
        """Return the name of the model that runs a step of an ensemble."""
        return f"{step}_{self._content(step)[:12]}" if self.shared else step

    def ensemble(self, name: EnsembleName) -> str:
        """Return the name of an ensemble."""
        return served_name(name, self.spec.name if self.shared else None)

    def _content(self, step: str) -> str:
        if step == IMAGE_PREPROCESS:
            return hashlib.sha256(self.spec.preprocess.model_dump_json().encode()).hexdigest()
        if step == TOKENIZE:
            content = self.spec.tokenizer.model_dump_json() + self.spec.files[self.spec.tokenizer.file]
            return hashlib.sha256(content.encode()).hexdigest()
        return graph_sha256(self.spec, step)
