"""What sentence-transformers writes beside a model of transformers: `modules.json`, the modules of its embeddings.

https://sbert.net/docs/package_reference/sentence_transformer/modules.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cirrus_client.errors import CheckpointError
from cirrus_client.records import Record

_MODULES, _CONFIG = "modules.json", "config.json"
_SAME_DIRECTION = frozenset({"Normalize", "Dropout"})
_POOLING, _MODE = "Pooling", "pooling_mode"
_SETTINGS = "config_sentence_transformers.json"
_QUERY, _DOCUMENTS = "query", ("document", "passage", "corpus")


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

    pooling: the mode in which Cirrus pools the model's output itself; None if the model's output is pooled. Raises
    CheckpointError for a module behind the model that changes embeddings in another way, as a `Dense` does.
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
    return folder / first.path


@dataclass(frozen=True)
class Prompts:
    """What sentence-transformers puts before queries and before documents, each empty if it puts nothing there.

    file: that says so.
    """

    file: Path = Path()
    query: str = ""
    document: str = ""


def own_prompts(folder: Path) -> Prompts:
    """Return the prompts of a folder that sentence-transformers saved. Raises CheckpointError if they can't be read."""
    path = folder / _SETTINGS
    settings = _read(path) if path.is_file() else {}
    prompts = settings.get("prompts")
    if not isinstance(prompts, dict):
        return Prompts(path)
    usual = prompts.get(str(settings.get("default_prompt_name")))

    def said(*names: str) -> str:
        return str(next((prompts[name] for name in names if prompts.get(name)), usual) or "")

    return Prompts(path, said(_QUERY), said(*_DOCUMENTS))


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
