"""State dicts: read from a file, and loaded into a module without a key left over."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.file import read_file
from cirrus_export.checkpoints.values import in_float32
from cirrus_export.checkpoints.wrappers import is_state_dict, listed, state_dict_in, without_prefixes

_MOST_DIGITS = 6
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
    """Read a file of safetensors or torch, or a TorchScript archive; nothing in it runs.

    Every floating-point type becomes float32. The prefixes of DataParallel, torch.compile and Lightning are removed.
    Where the file holds more than tensors, as `{"epoch": 7, "state_dict": {...}}` does, the one state dict in it is
    taken, whatever it is called. Raises CheckpointError if the file is missing, broken or no checkpoint, would run code
    when opened, holds no state dict, or holds NaN or infinity.
    """
    return as_state_dict(state_dict_in(read_checkpoint(path), str(path)), str(path))


def read_checkpoint(path: Path) -> Mapping[str, object]:
    """Read a checkpoint file as it is. Raises CheckpointError; see `read_state_dict`."""
    content = read_file(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path}: holds a {type(content).__name__}, expected a state dict")
    if not content:
        raise CheckpointError(f"checkpoint {path}: holds no tensor")
    return content


def tensor_names(path: Path) -> list[str]:
    """Return the names of all tensors of a checkpoint; those of its entries both alone and behind the entry's name.

    Raises CheckpointError as `read_state_dict` does.
    """
    names: list[str] = []
    for entry, value in read_checkpoint(path).items():
        inside = list(without_prefixes(value, str(path))[0]) if is_state_dict(value) else []
        names += [str(entry), *inside, *(f"{entry}.{name}" for name in inside)]
    return names


def as_state_dict(tensors: Mapping[str, Tensor], source: str) -> StateDict:
    """Return tensors in float32, under their names without the prefixes of wrappers.

    Raises CheckpointError if there is none, and for values that can't be read.
    """
    named, prefix = without_prefixes(in_float32(tensors, source), source)
    if not named:
        raise CheckpointError(f"checkpoint {source}: holds no tensor of a model")
    return StateDict(named, source, prefix)


def without_trainer(state: StateDict, is_known: Callable[[StateDict], bool]) -> StateDict:
    """Return a model's state dict out of a trainer's, like SPN4CIR's, whose keys all begin with one attribute's name.

    is_known: whether a state dict has the keys looked for. The name is kept if they are not found without it.
    """
    names = {key.partition(".")[0] for key in state}
    if len(names) != 1 or is_known(state):
        return state
    held = state.under(f"{names.pop()}.")
    return held if is_known(held) else state


def pass_over(state: StateDict, unused: Sequence[Unused]) -> StateDict:
    """Drop keys that retrieval does not use, and log them with the reason."""
    kept = dict(state)
    for kind in unused:
        passed = [key for key in kept if re.match(kind.keys, key)]
        if passed:
            named = sorted({f"{state.prefix}{'.'.join(key.split('.')[:2])}" for key in passed})
            log.info("checkpoint %s: not used: %s (%s)", state.source, listed(named, limit=20), kind.reason)
        for key in passed:
            del kept[key]
    return state.derived(kept)


def load_strictly(module: nn.Module, state: StateDict, *, theirs: Callable[[str], str] = str) -> None:
    """Load a state dict whose keys must be the module's, all of them and no others.

    theirs: turns a key into the file's own name for it, for messages. Raises CheckpointError naming every missing,
    surplus and wrongly shaped key, each missing one with the nearest surplus; see also `one_error_for_all_keys`.
    """
    state = _with_own_prefix(state, module.state_dict())
    problems = key_problems(module, state, theirs=theirs)
    report_problems(state.source, problems)
    if not problems:
        module.load_state_dict(state)


def key_problems(module: nn.Module, state: StateDict, *, theirs: Callable[[str], str] = str) -> list[str]:
    """Return what keeps a state dict from being loaded, one sentence per key. The module may be on the meta device."""
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
        elif state[key].is_floating_point() != expected[key].is_floating_point():
            problems.append(f"key '{in_file(key)}' is {state[key].dtype}, expected {expected[key].dtype}")
    return problems + [f"key '{key}' is not part of the model" for key in surplus]


def _with_own_prefix(state: StateDict, expected: Mapping[str, Tensor]) -> StateDict:
    """Give back a prefix that was taken for a wrapper's to a module that has all its weights under `net` or `model`."""
    parts = state.prefix.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        own = "".join(f"{part}." for part in parts[-count:])
        renamed = {f"{own}{key}": value for key, value in state.items()}
        if expected.keys().isdisjoint(state) and not expected.keys().isdisjoint(renamed):
            return StateDict(renamed, state.source, state.prefix.removesuffix(own))
    return state


def report_problems(source: str, problems: list[str]) -> None:
    """Raise CheckpointError if there are problems, or, within `one_error_for_all_keys`, keep them for its end."""
    collected = _collected.get()
    if collected is not None:
        collected += [(source, problem) for problem in problems]
    elif problems:
        raise CheckpointError(f"checkpoint {source}: {listed(problems, separator='; ')}")


@contextlib.contextmanager
def one_error_for_all_keys() -> Iterator[None]:
    """Collect the problems of every `load_strictly` inside, and raise one CheckpointError at the end that names all.

    A key that was renamed from one part of a model to another is missing in the first and surplus in the second, so
    both must be seen together. What else fails after a problem is taken to follow from it.
    """
    problems: list[tuple[str, str]] = []
    token = _collected.set(problems)
    try:
        yield
    except Exception as error:
        if not problems:
            raise
        raise _all(problems) from error
    finally:
        _collected.reset(token)
    if problems:
        raise _all(problems)


def _all(problems: list[tuple[str, str]]) -> CheckpointError:
    by_source: dict[str, list[str]] = {}
    for source, problem in problems:
        by_source.setdefault(source, []).append(problem)
    return CheckpointError(
        "; ".join(
            f"checkpoint {source}: {listed(found, separator='; ', limit=16)}" for source, found in by_source.items()
        )
    )


def count_layers(keys: Iterable[str], pattern: str, *, default: int | None = None) -> int:
    """Return how many layers a file has: one more than the largest number that the pattern's group matches.

    A number far beyond the count of layers is no layer's. default: the answer if no key matches; without one, that
    raises KeyError.
    """
    matches = (re.match(pattern, key) for key in keys)
    numbers = {int(found[1]) for found in matches if found and len(found[1]) < _MOST_DIGITS}
    if numbers:
        return max((number + 1 for number in numbers if number < 2 * len(numbers)), default=len(numbers))
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
