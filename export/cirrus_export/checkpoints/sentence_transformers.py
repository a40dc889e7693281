"""What sentence-transformers writes beside a model of transformers: `modules.json`, the modules of its embeddings.

https://sbert.net/docs/package_reference/sentence_transformer/modules.html
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cirrus_client.errors import CheckpointError
from cirrus_client.records import Record

_MODULES, _CONFIG = "modules.json", "config.json"
_SAME_DIRECTION = frozenset({"Normalize", "Dropout"})
_POOLING, _MODE = "Pooling", "pooling_mode"
_SETTINGS = "config_sentence_transformers.json"
log = logging.getLogger(__name__)


class _Module(Record):
    """A module. path: its folder, empty for the checkpoint's own. type: its class, by its full name."""

    model_config = ConfigDict(extra="ignore")

    path: str
    type: str

    @property
    def name(self) -> str:
        """The name of its class."""
        return self.type.rpartition(".")[2]


def model_folder(folder: Path, *, pooling: str | None = None) -> Path:
    """Return the folder of the model in what sentence-transformers saved; any other folder is its own.

    pooling: the mode of pooling of whoever reads the model and words its inputs himself, None if its output is pooled
    and texts are read as they are; then a prompt before every text is warned of. Raises CheckpointError for a module
    behind the model that changes embeddings in another way, as a `Dense` does.
    """
    path = folder / _MODULES
    if not path.is_file():
        return folder
    try:
        modules = TypeAdapter(list[_Module]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"checkpoint {path}: {error.errors()[0]['msg']}") from None
    first, *others = modules or [_Module(path="", type="")]
    for module in others:
        pools = module.name == _POOLING and _pools(folder / module.path, pooling)
        if not pools and module.name not in _SAME_DIRECTION:
            raise CheckpointError(
                f"checkpoint {path}: its embeddings go through {module.type} ({module.path}) behind the model, which "
                "no recipe has, and without which they would be other ones"
            )
    if first.path and Path(first.path).name != first.path:
        raise CheckpointError(f"checkpoint {path}: {first.path!r} is no folder beside it")
    if pooling is None and (folder / _SETTINGS).is_file():
        _warn_of_prompt(folder / _SETTINGS)
    return folder / first.path


def _warn_of_prompt(path: Path) -> None:
    settings = _read(path)
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if prompt:
        log.warning("%s: sentence-transformers puts %r before every text, and Cirrus does not", path, prompt)


def _pools(folder: Path, mode: str | None) -> bool:
    """Return whether a module pools in one mode; its configuration names it, or, in older ones, has a flag for each."""
    config = _read(folder / _CONFIG)
    flags = [name.removeprefix(f"{_MODE}_") for name, value in config.items() if name.startswith(f"{_MODE}_") and value]
    named = config.get(_MODE, flags)
    return mode is not None and ([named] if isinstance(named, str) else named) == [mode]


def _read(path: Path) -> dict[str, Any]:
    try:
        return TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: can't be read: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(f"checkpoint {path}: {error.errors()[0]['msg']}") from None
