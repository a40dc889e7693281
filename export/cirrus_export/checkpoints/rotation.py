"""The rotation of a language model's positions (RoPE, arXiv 2104.09864), as transformers configures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cirrus_client.errors import CheckpointError

_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Those whose frequencies are the same at every length of a text."""


def check_rotation(config: Any, path: Path) -> None:
    """Raise CheckpointError for a rotation that depends on a text's length, which a graph has not.

    config: transformers' of the language model. path: of the file or the folder that it is from.
    """
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", _ROTATIONS[0])
    if rotation not in _ROTATIONS:
        raise CheckpointError(
            f"checkpoint {path}: its rope_type is {rotation}, and {', '.join(_ROTATIONS)} can be exported"
        )
