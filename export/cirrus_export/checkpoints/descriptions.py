"""Descriptions of what the pickle in one of torch's zip files would build: nothing that it names is imported or called.

The tensors of a description are then read from the files beside the pickle.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from cirrus_client.errors import CheckpointError

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


_MOST_MODULES = 100_000


class Frozen(type):
    """The class of classes that unpickling can't change: its BUILD sets attributes of whatever it is given."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"{cls.__name__}.{name} is set")


class Description(tuple[Any, ...], metaclass=Frozen):
    """What a call in the pickle was given. Nothing is called."""

    __slots__ = ()

    def __new__(cls, *arguments: object) -> Description:
        return super().__new__(cls, arguments)


class Storage(Description):
    """(dtype, name of its file, number of elements)"""

    __slots__ = ()


class View(Description):
    """(storage, offset, size, stride, ...): the arguments of `torch._utils._rebuild_tensor_v2`"""

    __slots__ = ()


class DescribingUnpickler(pickle.Unpickler, ABC):
    """Builds descriptions of tensors. What else a pickle may name, `known` says, and `other` what becomes of the rest.

    known: what stands for a class or a function, by its module and name.
    """

    known: ClassVar[Mapping[tuple[str, str], Any]]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or a function."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return View
        return self.known[module, name] if (module, name) in self.known else self.other(module, name)

    @abstractmethod
    def other(self, module: str, name: str) -> Any:
        """Return what stands for a class or a function that is not known, or raise CheckpointError."""

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a persistent id names."""
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"a persistent id that is no storage: {kind!r}")
        return Storage(dtype, str(key), int(numel))


class StoredTensors:
    """The tensors beside the pickle of an open zip file. path: for messages. root: the folder of all its entries."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        """Raise CheckpointError for a file of a big-endian machine."""
        self._path = path
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}
        if f"{root}byteorder" in archive.namelist() and self.stored("byteorder") != b"little":
            raise CheckpointError(f"checkpoint {path}: was saved on a big-endian machine; save it on another")

    def tensor(self, view: View) -> Tensor:
        """Return the tensor of a description. Raises CheckpointError if its file is too short."""
        storage, offset, size, stride = view[:4]
        dtype, key, numel = storage
        if key not in self._storages:
            content = self.stored(f"data/{key}")
            if len(content) < numel * dtype.itemsize:
                raise CheckpointError(f"checkpoint {self._path}: data/{key} is too short; copy it again")
            flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self._storages[key] = flat
        return self._storages[key].as_strided(size, stride, offset)

    def stored(self, name: str) -> bytes:
        """Return a file that torch stores as it is; a compressed one could be larger than any memory."""
        entry = self._archive.getinfo(f"{self._root}{name}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"checkpoint {self._path}: {name} is compressed, which torch never does")
        return self._archive.read(entry)


Inside = tuple[Mapping[str, View], Mapping[str, Any]]
"""The tensors of a module itself, and the modules below it, by name."""


def named_views(
    path: Path, module: object, inside: Callable[[object, str], Inside | None]
) -> Iterator[tuple[str, View]]:
    """Yield the tensors of a module and of those below it, by the names that `state_dict` gives them.

    path: for messages. inside: returns what a module has, None for what is no module; it is told the module's name.
    Raises CheckpointError for what is no module, a module that holds itself, or too many.
    """
    counted = 0

    def walk(part: object, prefix: str, above: tuple[int, ...]) -> Iterator[tuple[str, View]]:
        nonlocal counted
        counted += 1
        if counted > _MOST_MODULES:
            raise CheckpointError(f"checkpoint {path}: has over {_MOST_MODULES:,} modules")
        held = None if id(part) in above else inside(part, prefix)
        if held is None:
            raise CheckpointError(f"checkpoint {path}: '{prefix}' is no module, or holds itself")
        views, modules = held
        for name, view in views.items():
            yield f"{prefix}{name}", view
        for name, below in modules.items():
            yield from walk(below, f"{prefix}{name}.", (*above, id(part)))

    return walk(module, "", ())
