"""What trainers put around a state dict: entries beside it in the file, and prefixes before its names."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import TypeGuard

from torch import Tensor

from cirrus_client.errors import CheckpointError

_KNOWN_ENTRIES = ("state_dict", "model_state_dict", "model", "state")
_TRAINING_STATE = re.compile("optim|sched|scaler|rng|callbacks|loops")
"""Names of entries whose tensors are not weights."""
_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "net.")
"""DataParallel's, torch.compile's, FSDP's, and the attributes under which Lightning modules keep a model."""
_COUNTER = "n_averaged"
"""Of torch's AveragedModel, beside the model that it averages."""
_INNER = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
log = logging.getLogger(__name__)


def is_state_dict(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Return True if a value maps names to tensors and nothing else."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items())
    )


def state_dict_in(content: Mapping[str, object], source: str) -> Mapping[str, Tensor]:
    """Return the one state dict of a file, and log what is left aside.

    It is the file itself, also where an epoch stands among its tensors, or the one entry that is a state dict, whatever
    it is called; of several, the one with a usual name. Raises CheckpointError if there is none, or no one.
    """
    if is_state_dict(content):
        return content
    loose = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    inside = {
        entry: tensors
        for entry, value in content.items()
        if not _TRAINING_STATE.search(str(entry)) and (tensors := _tensors_of(value))
    }
    if not inside and loose:
        report_left_aside(content, list(loose), source)
        return loose
    weights = [name for name, value in loose.items() if value.ndim and not _TRAINING_STATE.search(str(name))]
    known = [entry for entry in _KNOWN_ENTRIES if entry in inside]
    if weights or not (known or len(inside) == 1):
        found = f"state dicts under {listed(list(inside))}" if inside else f"none under {listed(list(content))}"
        beside = f", and tensors beside them: {listed(weights)}" if weights else ""
        raise CheckpointError(
            f"checkpoint {source}: expected one state dict, found {found}{beside}; save the model's alone"
        )
    entry = known[0] if known else next(iter(inside))
    report_left_aside(content, [entry], source)
    return inside[entry]


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
        log.info("checkpoint %s: not used: %s (state of its training)", source, listed(rest))


def without_prefixes(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str]:
    """Return tensors without the prefixes of wrappers that all of them have, and those prefixes.

    Raises CheckpointError if two names become one.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if name != _COUNTER}
    names, prefix = list(tensors), ""
    while names and (found := next((one for one in _PREFIXES if all(name.startswith(one) for name in names)), None)):
        names = [name.removeprefix(found) for name in names]
        prefix += found
    names = [_INNER.sub(r"\1", name) for name in names]
    if len(set(names)) < len(names):
        raise CheckpointError(f"checkpoint {source}: holds some tensors both compiled and not; save the model's alone")
    return dict(zip(names, tensors.values(), strict=True)), prefix


def listed(items: list[str], *, separator: str = ", ", limit: int = 8) -> str:
    """Return items in one line, the first ones by name."""
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(map(str, items[:limit])) + more


def _tensors_of(value: object) -> dict[str, Tensor]:
    """Return the tensors of a mapping from names to tensors and plain values; none of anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return {}
    tensors = {name: item for name, item in value.items() if isinstance(item, Tensor)}
    others = [item for item in value.values() if not isinstance(item, Tensor)]
    return {} if any(map(_holds_tensors, others)) else tensors


def _holds_tensors(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)


def _quoted(entries: Collection[str]) -> str:
    return listed([f"'{entry}'" for entry in entries])
