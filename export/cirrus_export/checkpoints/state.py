"""State dicts: read from a file, and loaded into a module without a key left over."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.torch_file import read_torch
from cirrus_export.checkpoints.torchscript import is_torchscript, read_torchscript

_DATA_PARALLEL = "module."
_KNOWN_WRAPPERS = ("state_dict", "model_state_dict", "model", "state")
_TRAINING_STATE = re.compile("optim|sched|scaler|rng|callbacks|loops")
"""Names of entries whose tensors are not weights."""
_collected: ContextVar[list[tuple[str, str]] | None] = ContextVar("problems", default=None)
log = logging.getLogger(__name__)


class StateDict(dict[str, Tensor]):
    """Float32 tensors by parameter name. source, prefix: for messages, the file and the names' prefix in it."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str, prefix: str = "") -> None:
        super().__init__(tensors)
        self.source = source
        self.prefix = prefix

    def derived(self, tensors: Mapping[str, Tensor]) -> StateDict:
        """Return other tensors with the same source and prefix."""
        return StateDict(tensors, self.source, self.prefix)

    def under(self, prefix: str) -> StateDict:
        """Return the tensors whose name has a prefix, without the prefix."""
        part = {key.removeprefix(prefix): tensor for key, tensor in self.items() if key.startswith(prefix)}
        return StateDict(part, self.source, self.prefix + prefix)


@dataclass(frozen=True)
class Unused:
    """Keys of a checkpoint that retrieval does not use by design.

    keys: a regular expression that matches them from their beginning. reason: what they are, for the log.
    """

    keys: str
    reason: str


def read_state_dict(path: Path) -> StateDict:
    """Read a `.safetensors` file, or a torch file opened with `weights_only=True`.

    Half precision becomes float32 and DataParallel's `module.` prefix is removed. Where the file holds more than
    tensors, as `{"epoch": 7, "state_dict": {...}}` does, the one state dict in it is taken, whatever it is called.
    Raises CheckpointError if the file is missing, broken, would run code when opened, or holds no state dict.
    """
    content = read_checkpoint(path)
    return as_state_dict(_unwrapped(content, path), str(path))


def read_checkpoint(path: Path) -> Mapping[str, object]:
    """Read a checkpoint file as it is. Raises CheckpointError; see `read_state_dict`."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: there is no such file")
    try:
        content = _read(path)
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"checkpoint {path}: can't be read: {error}") from error
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"checkpoint {path}: holds a {type(content).__name__}, expected a state dict")
    return content


def tensor_names(path: Path) -> list[str]:
    """Return the names of all tensors of a checkpoint; those of its entries both alone and behind the entry's name.

    Raises CheckpointError as `read_state_dict` does.
    """
    names: list[str] = []
    for entry, value in read_checkpoint(path).items():
        inside = list(as_state_dict(value, str(path))) if is_state_dict(value) else []
        names += [str(entry), *inside, *(f"{entry}.{name}" for name in inside)]
    return names


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    return read_torchscript(path) if is_torchscript(path) else read_torch(path)


def as_state_dict(tensors: Mapping[str, Tensor], source: str) -> StateDict:
    """Return tensors in float32, DataParallel's prefix removed."""
    full = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    if all(key.startswith(_DATA_PARALLEL) for key in full):
        return StateDict(full, source).under(_DATA_PARALLEL)
    return StateDict(full, source)


def is_state_dict(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Return True if a value maps names to tensors and nothing else."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def report_left_aside(content: Mapping[str, object], read: Collection[str], source: str) -> None:
    """Log the entries of a checkpoint that are not read: a warning if they hold weights, which nobody would miss."""
    left = [entry for entry in content if entry not in read]
    weights = [entry for entry in left if _holds_tensors(content[entry]) and not _TRAINING_STATE.search(str(entry))]
    rest = [str(entry) for entry in left if entry not in weights]
    if weights:
        log.warning(
            "checkpoint %s: %s is read, and the weights under %s are not; if they are meant, save them alone",
            *(source, _quoted(read), _quoted(weights)),
        )
    if rest:
        log.info("checkpoint %s: not used: %s (state of its training)", source, _listed(rest))


def _unwrapped(content: Mapping[str, object], path: Path) -> Mapping[str, Tensor]:
    if is_state_dict(content):
        return content
    inside = {key: value for key, value in content.items() if is_state_dict(value)}
    known = [key for key in _KNOWN_WRAPPERS if key in inside]
    if len(inside) != 1 and not known:
        strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        found = f"state dicts under {_listed(list(inside))}" if inside else f"no tensors under {_listed(strangers)}"
        raise CheckpointError(f"checkpoint {path}: expected one state dict, found {found}; save the model's alone")
    name = known[0] if known else next(iter(inside))
    report_left_aside(content, [name], str(path))
    return inside[name]


def _holds_tensors(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensors(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensors(item) for item in value)
    return isinstance(value, Tensor)


def pass_over(state: StateDict, unused: Sequence[Unused]) -> StateDict:
    """Drop keys that retrieval does not use, and log them with the reason."""
    kept = dict(state)
    for kind in unused:
        passed = [key for key in kept if re.match(kind.keys, key)]
        if passed:
            named = sorted({f"{state.prefix}{'.'.join(key.split('.')[:2])}" for key in passed})
            log.info("checkpoint %s: not used: %s (%s)", state.source, _listed(named, limit=20), kind.reason)
        for key in passed:
            del kept[key]
    return state.derived(kept)


def load_strictly(module: nn.Module, state: StateDict, *, theirs: Callable[[str], str] = str) -> None:
    """Load a state dict whose keys must be the module's, all of them and no others.

    theirs: turns a key into the file's own name for it, for messages. Raises CheckpointError naming every missing,
    surplus and wrongly shaped key, each missing one with the nearest surplus; see also `one_error_for_all_keys`.
    """
    expected = module.state_dict()

    def in_file(key: str) -> str:
        return state.prefix + theirs(key)

    problems: list[str] = []
    surplus = [in_file(key) for key in state if key not in expected]
    for key in expected:
        if key not in state:
            nearest = difflib.get_close_matches(in_file(key), surplus, n=1)
            hint = f" (nearest surplus key: '{nearest[0]}')" if nearest else ""
            problems.append(f"key '{in_file(key)}' is missing{hint}")
        elif state[key].shape != expected[key].shape:
            found, wanted = tuple(state[key].shape), tuple(expected[key].shape)
            problems.append(f"key '{in_file(key)}' has shape {found}, expected {wanted}")
    problems += [f"key '{key}' is not part of the model" for key in surplus]
    report_problems(state.source, problems)
    if not problems:
        module.load_state_dict(state)


def report_problems(source: str, problems: list[str]) -> None:
    """Raise CheckpointError if there are problems, or, within `one_error_for_all_keys`, keep them for its end."""
    collected = _collected.get()
    if collected is not None:
        collected += [(source, problem) for problem in problems]
    elif problems:
        raise CheckpointError(f"checkpoint {source}: {_listed(problems, separator='; ')}")


@contextlib.contextmanager
def one_error_for_all_keys() -> Iterator[None]:
    """Collect the problems of every `load_strictly` inside, and raise one CheckpointError at the end that names all.

    A key that was renamed from one part of a model to another is missing in the first and surplus in the second, so
    both must be seen together.
    """
    problems: list[tuple[str, str]] = []
    token = _collected.set(problems)
    try:
        yield
    finally:
        _collected.reset(token)
    if problems:
        by_source: dict[str, list[str]] = {}
        for source, problem in problems:
            by_source.setdefault(source, []).append(problem)
        raise CheckpointError(
            "; ".join(
                f"checkpoint {source}: {_listed(found, separator='; ', limit=16)}"
                for source, found in by_source.items()
            )
        )


def count_layers(keys: Iterable[str], pattern: str, *, default: int | None = None) -> int:
    """Return how many layers a file has: one more than the largest number that the pattern's group matches.

    default: the answer if no key matches; without one, that raises KeyError.
    """
    numbers = [int(found[1]) for key in keys if (found := re.match(pattern, key))]
    if numbers:
        return max(numbers) + 1
    if default is None:
        raise KeyError(pattern)
    return default


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 of a module's parameters and buffers: names, shapes and float32 values."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu").contiguous().numpy().tobytes())
    return digest.hexdigest()


def _quoted(entries: Collection[str]) -> str:
    return _listed([f"'{entry}'" for entry in entries])


def _listed(items: list[str], *, separator: str = ", ", limit: int = 8) -> str:
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more
