"""Read a configuration of transformers as data, and find what it names that is none: modules, kernels to fetch."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cirrus_client.errors import CheckpointError

_CODE = re.compile("auto_map|remote_code|implementation|kernel|quantization")
_OWN = (None, False, "eager", "sdpa")
_NOTE = "_attn_implementation_autoset"
"""By which transformers 4, from 4.46 on, noted that it had chosen the attention itself."""


def code_named_in(config: object, known: Collection[str] = ()) -> str | None:
    """Return the first key of a configuration, at any depth, for which transformers would import or fetch code.

    known: modules that `auto_map` may name.
    """
    if not isinstance(config, Mapping):
        return None
    for key, value in config.items():
        own = key == _NOTE or value is None or (isinstance(value, bool | str) and value in _OWN)
        if _CODE.search(str(key)) and not own and not (key == "auto_map" and _modules(value) <= set(known)):
            return str(key)
        if (inner := code_named_in(value, known)) is not None:
            return inner
    return None


def _modules(auto_map: object) -> set[str]:
    """Return the modules of `auto_map`: "module.Class", behind "owner/repository--" if they are another folder's."""
    named = auto_map.values() if isinstance(auto_map, Mapping) else (auto_map,)
    return {str(name).rpartition("--")[2].partition(".")[0] for name in named}


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


def refuse_code(content: Mapping[str, Any], path: Path, *, known: Collection[str] = ()) -> None:
    """Raise CheckpointError if the configuration that was read from `path` names code other than `known` modules."""
    code = code_named_in(content, known)
    if code is not None:
        raise CheckpointError(
            f"checkpoint {path}: '{code}' names code, which is not run; it may compute something else than the model "
            "that is read here. If you know that it does not, leave the key out"
        )
