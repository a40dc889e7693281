"""Read a configuration of transformers as data, and find what it names that is none: modules, kernels to fetch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirrus_client.errors import CheckpointError

_CODE = re.compile("auto_map|remote_code|implementation|kernel|quantization")
_OWN = (None, False, "eager", "sdpa")


def code_named_in(config: object) -> str | None:
    """Return the first key of a configuration, at any depth, for which transformers would import or fetch code."""
    if not isinstance(config, Mapping):
        return None
    for key, value in config.items():
        if _CODE.search(str(key)) and not (value is None or (isinstance(value, bool | str) and value in _OWN)):
            return str(key)
        if (inner := code_named_in(value)) is not None:
            return inner
    return None


def read_config(path: Path, model_type: str, *, what: str) -> dict[str, Any]:
    """Return a model's `config.json`, before its weights are read. what: the model, like "an InstructBLIP".

    Raises CheckpointError if it can't be read, or is of another `model_type`.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        found = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: is no configuration of {what}: {error}") from None
    if found != model_type:
        raise CheckpointError(f"checkpoint {path}: describes a model of type {found!r}, expected {model_type!r}")
    return content


def refuse_code(content: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if the configuration that was read from `path` names code."""
    code = code_named_in(content)
    if code is not None:
        raise CheckpointError(f"checkpoint {path}: '{code}' names code, and a configuration is data: leave it out")
