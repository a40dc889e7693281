"""Read the tensors of a module that `torch.save(model, ...)` pickled with its class, without the class.

`torch.load` would import the author's code. Here every object is an empty one that keeps its attributes, and the
tensors are named as `state_dict` names them: by the modules, parameters and buffers that every `torch.nn.Module` keeps.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

from torch import Tensor

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.descriptions import (
    DescribingUnpickler,
    Description,
    Frozen,
    Inside,
    StoredTensors,
    View,
    named_views,
)

_PICKLE = "data.pkl"
_PARTS = {"_parameters", "_buffers", "_modules"}
log = logging.getLogger(__name__)


def read_pickled_modules(path: Path) -> object | None:
    """Return the state dict of a pickled module, or those of a mapping that holds one, by its keys; None without one.

    path: a file of `torch.save` in its zip format. What is no weight is left out. Raises CheckpointError for a module
    that holds itself, or a parameter that is no plain tensor; whatever zipfile, pickle and torch raise if the file is
    broken.
    """
    with zipfile.ZipFile(path) as archive:
        (root,) = {name.removesuffix(_PICKLE) for name in archive.namelist() if name.endswith(f"/{_PICKLE}")}
        tensors = StoredTensors(path, archive, root)
        content = _Unpickler(tensors.stored(_PICKLE)).load()
        entries = content if isinstance(content, Mapping) else {"": content}
        modules = [value for value in entries.values() if _is_module(value)]
        if not modules:
            return None
        for module in modules:
            log.info(
                "checkpoint %s: holds a pickled %s: its tensors are read by their names, and not its code",
                path,
                module.kind,
            )
        states = {key: _state_dict(value, path, tensors) for key, value in entries.items() if _has_weights(value)}
        return states if content is entries else states[""]


class _Object(metaclass=Frozen):
    """An instance of any class. kind: the full name of its class. state: its attributes."""

    kind: str
    state: object

    def __new__(cls, *arguments: object, **named: object) -> _Object:
        made = super().__new__(cls)
        made.state = None
        return made

    def __init__(self, *arguments: object, **named: object) -> None:
        """Take what a class would be given, or a function."""

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Leave out an item of a mapping."""

    def append(self, item: object) -> None:
        """Leave out an item of a list."""

    def add(self, item: object) -> None:
        """Leave out an item of a set."""


class _Parameter(Description):
    """(tensor, ...): the arguments of `torch._utils._rebuild_parameter`"""

    __slots__ = ()


class _Reconstructed(metaclass=Frozen):
    """`copyreg._reconstructor`, by which protocol 2 makes an object without attributes."""

    def __new__(cls, kind: object, *base: object) -> Any:
        if not (isinstance(kind, type) and issubclass(kind, _Object)):
            raise pickle.UnpicklingError(f"an object of {kind!r} is made without its class")
        return kind()


class _Unpickler(DescribingUnpickler):
    known: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("copyreg", "_reconstructor"): _Reconstructed,
        ("copy_reg", "_reconstructor"): _Reconstructed,
        ("torch._utils", "_rebuild_parameter"): _Parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _Parameter,
    }

    def other(self, module: str, name: str) -> Any:
        return Frozen("Object", (_Object,), {"kind": f"{module}.{name}"})


def _is_module(value: object) -> TypeGuard[_Object]:
    return isinstance(value, _Object) and isinstance(value.state, dict) and value.state.keys() >= _PARTS


def _has_weights(value: object) -> bool:
    """Return whether a value is a module, or a state dict beside one."""
    return _is_module(value) or (
        isinstance(value, Mapping) and bool(value) and all(isinstance(one, View | _Parameter) for one in value.values())
    )


def _state_dict(held: Any, path: Path, tensors: StoredTensors) -> dict[str, Tensor]:
    """Return the tensors of a module, as its `state_dict` names them, or of a state dict."""

    def inside(part: object, prefix: str) -> Inside | None:
        if not _is_module(part):
            return None
        state: Any = part.state
        passing = state.get("_non_persistent_buffers_set") or ()
        buffers = {name: value for name, value in state["_buffers"].items() if name not in passing}
        views = {name: _view(value) for name, value in (*state["_parameters"].items(), *buffers.items())}
        for name, view in views.items():
            if view is not None and not isinstance(view, View):
                raise CheckpointError(f"checkpoint {path}: '{prefix}{name}' is no plain tensor")
        return _there(views), _there(state["_modules"])

    views = named_views(path, held, inside) if _is_module(held) else ((name, _view(one)) for name, one in held.items())
    return {name: tensors.tensor(view) for name, view in views}


def _there(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not None: a parameter, a buffer or a module may be."""
    return {name: value for name, value in named.items() if value is not None}


def _view(value: Any) -> Any:
    return value[0] if isinstance(value, _Parameter) else value
