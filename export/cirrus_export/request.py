"""What to export, as the user says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from cirrus_client.bundle import Precision
from cirrus_client.choices import member
from cirrus_client.errors import ExportError
from cirrus_client.files import sha256_of_file
from cirrus_client.invalid_fields import first_problem
from cirrus_export.backbones.family import BackboneOptions
from cirrus_export.backbones.registry import RANDOM, split_pretrained


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    recipe, backbone: names, `module:Class` or `FILE.py:Class`. pretrained: an open_clip tag, a file or folder,
    `TAG=FILE`, or "random"; None where the head's checkpoint carries its backbone. head: the head's checkpoint,
    "random", or None where the recipe has no head. options: the recipe's and the backbone's, by name. for_triton: an
    NGC release of Triton for which TensorRT plans are compiled as well, or None. tokenizer: the `tokenizer.json` of a
    backbone whose tokenizer is on a hub, or None to fetch it. A precision may be given as a string. Raises InvalidInput
    for one that there is not.
    """

    recipe: str
    backbone: str
    pretrained: str | None
    head: str | None
    out: Path
    precision: Precision = Precision.FP32
    options: Mapping[str, str | float | bool] = field(default_factory=dict)
    for_triton: str | None = None
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        """Take strings for paths and for a precision."""
        object.__setattr__(self, "precision", member(Precision, self.precision, "precision"))
        object.__setattr__(self, "out", Path(self.out))

    def backbone_options(self) -> BackboneOptions:
        """Return the options that are the backbone's. Raises ExportError for an invalid value."""
        own = {name: value for name, value in self.options.items() if name in BackboneOptions.model_fields}
        try:
            return BackboneOptions.model_validate(own)
        except ValidationError as error:
            raise ExportError(f"--{first_problem(error, own, noun='option')[1]}") from None

    def recipe_options(self) -> dict[str, str | float | bool]:
        """Return the options that are the recipe's."""
        return {name: value for name, value in self.options.items() if name not in BackboneOptions.model_fields}

    def located_pretrained(self) -> str | None:
        """Return `pretrained` with its path made absolute, so that it holds from any folder.

        Links are kept: a file of Hugging Face's cache is one, and its settings lie beside the link.
        """
        if self.pretrained is None:
            return None
        tag, path = split_pretrained(self.pretrained)
        parts = (tag, None if path is None else str(path.absolute()))
        return "=".join(part for part in parts if part is not None)

    def reads_files(self) -> bool:
        """Return whether any weights come from a file or folder, and not from a tag or a seed alone."""
        named = (self.pretrained and split_pretrained(self.pretrained)[1], self.head not in (None, RANDOM))
        return any(named)

    def head_identity(self) -> str | None:
        """Return the sha256 of the head's checkpoint, "random", or None."""
        return self.head if self.head in (None, RANDOM) else sha256_of_file(Path(str(self.head)))
