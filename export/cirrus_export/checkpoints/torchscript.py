"""Read the tensors of a TorchScript archive without running it: the form in which OpenAI publishes CLIP.

`torch.jit.load` runs the code of an archive, at least every `__setstate__` in it. Here `data.pkl` becomes a description
made of tuples: no class or function that it names is called. The tensors are then read as the description says.
"""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.descriptions import (
    DescribingUnpickler,
    Description,
    Inside,
    StoredTensors,
    View,
    named_views,
)

_MOST_CODE_BYTES = 64 * 1024**2
_CLASS = re.compile(r"^class (\w+)\(Module\):$", re.MULTILINE)
_SETSTATE = re.compile(r"^  def\s+__setstate__\s*\(", re.MULTILINE)
_DECLARED = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive: a zip file with constants beside its code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of an archive by name, as `torch.jit.load(path).state_dict()` does.

    Raises CheckpointError if the archive restores a module by code, or names anything but modules, tensors and plain
    data; whatever zipfile, pickle and torch raise if it is broken.
    """
    with zipfile.ZipFile(path) as archive:
        return _Archive(path, archive).state_dict()


class _Plain(Description):
    """A list or a dict with its type, which holds no module's weight."""

    __slots__ = ()


class _Module:
    """A module's attributes as its `__getstate__` left them. kind: the full name of its class."""

    kind: str
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(DescribingUnpickler):
    """Builds descriptions of tensors, and modules without behaviour."""

    known: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.jit._pickle", "restore_type_tag"): _Plain,
        ("torch.jit._pickle", "build_intlist"): _Plain,
        ("torch.jit._pickle", "build_doublelist"): _Plain,
        ("torch.jit._pickle", "build_boollist"): _Plain,
        ("torch.jit._pickle", "build_tensorlist"): _Plain,
    }

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(content)
        self._path = path

    def other(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return type("Module", (_Module,), {"kind": f"{module}.{name}"})
        raise CheckpointError(
            f"checkpoint {self._path}: refused, because opening it would run code stored in it: it holds a "
            f"{module}.{name}; save `model.state_dict()` in its author's environment and use that file"
        )


class _Archive:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._names = set(archive.namelist())
        (self._root,) = {name.removesuffix("constants.pkl") for name in self._names if name.endswith("/constants.pkl")}
        self._classes = dict(self._declared())
        self._tensors = StoredTensors(path, archive, self._root)

    def state_dict(self) -> dict[str, Tensor]:
        module = _Unpickler(self._tensors.stored("data.pkl"), self._path).load()
        return {name: self._tensors.tensor(view) for name, view in named_views(self._path, module, self._inside)}

    def _inside(self, module: object, prefix: str) -> Inside | None:
        """Return the parameters and buffers of a module, and the modules below it."""
        if not isinstance(module, _Module):
            return None
        declared, restored_by_code = self._classes.get(module.kind, (None, False))
        if restored_by_code:
            raise CheckpointError(
                f"checkpoint {self._path}: {module.kind} restores itself by a __setstate__ in the archive, and Cirrus "
                "does not run an archive's code; save `model.state_dict()` in its author's environment"
            )
        if not isinstance(module.state, dict):
            raise CheckpointError(f"checkpoint {self._path}: '{prefix}' has no attributes")
        views = {
            name: value
            for name, value in module.state.items()
            if isinstance(value, View) and (declared is None or name in declared)
        }
        return views, {name: value for name, value in module.state.items() if isinstance(value, _Module)}

    def _declared(self) -> Iterator[tuple[str, tuple[set[str] | None, bool]]]:
        """Yield each class with its parameters and buffers, None if it does not list them, and if it has __setstate__.

        The code is searched as text.
        """
        begin = f"{self._root}code/"
        files = [name for name in self._names if name.startswith(begin) and name.endswith(".py")]
        if sum(self._archive.getinfo(name).file_size for name in files) > _MOST_CODE_BYTES:
            raise CheckpointError(f"checkpoint {self._path}: its code is over {_MOST_CODE_BYTES:,} bytes")
        for file in files:
            module = file.removeprefix(begin).removesuffix(".py").replace("/", ".")
            _, *parts = _CLASS.split(self._archive.read(file).decode())
            for name, body in zip(parts[::2], parts[1::2], strict=True):
                lists = _DECLARED.findall(body)
                declared = set(re.findall(r'"([^"]*)"', " ".join(lists))) if len(lists) == 2 else None
                yield f"{module}.{name}", (declared, _SETSTATE.search(body) is not None)
