"""State dicts: read from a file, and loaded into a module without a key left over."""

from __future__ import annotations

import difflib
import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cirrus_client.errors import CheckpointError

_DATA_PARALLEL = "module."
_WRAPPERS = ("state_dict", "model_state_dict")


class StateDict(dict[str, Tensor]):
    """Parameter names to float32 tensors, with the file they came from for messages."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        super().__init__(tensors)
        self.source = source

    def under(self, prefix: str) -> StateDict:
        """Return the part under a prefix, the prefix removed."""
        part = {key.removeprefix(prefix): tensor for key, tensor in self.items() if key.startswith(prefix)}
        return StateDict(part, self.source)


def read_state_dict(path: Path) -> StateDict:
    """Read a `.safetensors` file, or a torch file opened with `weights_only=True`.

    Half precision becomes float32, DataParallel's `module.` prefix is removed, and the common wrappers
    `{"state_dict": ...}` are opened. Raises CheckpointError if the file is missing, broken, would run code when
    opened, or holds no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: there is no such file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"checkpoint {path}: can't be read: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"checkpoint {path}: holds a {type(content).__name__}, expected a state dict")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            f"checkpoint {path}: expected tensors only, found something else under {_listed(strangers)}"
        )
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in content.items()}
    if all(key.startswith(_DATA_PARALLEL) for key in tensors):
        tensors = {key.removeprefix(_DATA_PARALLEL): value for key, value in tensors.items()}
    return StateDict(tensors, str(path))


def load_strictly(module: nn.Module, state: StateDict, *, prefix: str = "") -> None:
    """Load a state dict whose keys must be the module's, all of them and no others.

    prefix: where this part stood in the file, for messages. Raises CheckpointError naming every missing, surplus
    and wrongly shaped key, each missing one with the nearest surplus.
    """
    expected = module.state_dict()
    problems: list[str] = []
    surplus = [key for key in state if key not in expected]
    for key in expected:
        if key not in state:
            nearest = difflib.get_close_matches(key, surplus, n=1)
            hint = f" (nearest surplus key: '{prefix}{nearest[0]}')" if nearest else ""
            problems.append(f"key '{prefix}{key}' is missing{hint}")
        elif state[key].shape != expected[key].shape:
            found, wanted = tuple(state[key].shape), tuple(expected[key].shape)
            problems.append(f"key '{prefix}{key}' has shape {found}, expected {wanted}")
    problems += [f"key '{prefix}{key}' is not part of the model" for key in surplus]
    if problems:
        raise CheckpointError(f"checkpoint {state.source}: {_listed(problems, separator='; ')}")
    module.load_state_dict(state)


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 of a module's parameters and buffers: names, shapes and float32 values."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu").contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_torch(path: Path) -> object:
    if _is_torchscript(path):  # the form in which OpenAI publishes CLIP
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path}: refused, because opening it would run code stored in it ({error}); save "
            "`model.state_dict()` in its author's environment and use that file"
        ) from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _listed(items: list[str], *, separator: str = ", ", limit: int = 8) -> str:
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more
