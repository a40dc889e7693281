"""Find plug-ins by name in a table or in the entry points of installed packages, as `module:Class` or `FILE.py:Class`.

Names come from whoever runs the command: what a bundle or an index says of itself is not imported.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from cirrus_client.errors import PluginError
from cirrus_client.extras import missing_package

_SUFFIX = ".py"
T = TypeVar("T")


def file_of(name: str) -> Path | None:
    """Return the file that a plug-in's name means, if it is `FILE.py:Class`."""
    file = name.rpartition(":")[0]
    return Path(file) if file.endswith(_SUFFIX) else None


def find_plugin(name: str, *, what: str, table: Mapping[str, str], group: str) -> Any:
    """Import the object that a name stands for, and return it.

    what: the kind of plug-in, for error messages, like "index backend". table: maps a name in this tree to
    `module:Class`. group: the entry-point group of installed packages. Raises PluginError if the name is unknown, is
    taken twice, or can't be imported. Raises MissingPackage if the import fails because an optional package is missing.
    """
    if ":" in name:
        return _imported(name, what)
    found = known_plugins(what=what, table=table, group=group)
    if name not in found:
        known = ", ".join(sorted(found))
        raise PluginError(
            f"there is no {what} '{name}'; there are: {known}, or give module:Class or FILE.py:Class", name=name
        )
    return _imported(found[name], what)


def find_subclass(base: type[T], name: str, *, what: str, table: Mapping[str, str], group: str) -> type[T]:
    """Return the class that a name stands for; see `find_plugin`. Raises PluginError unless it is derived from base."""
    found = find_plugin(name, what=what, table=table, group=group)
    if not (isinstance(found, type) and issubclass(found, base)):
        package = base.__module__.rpartition(".")[0]
        raise PluginError(f"{what} {name} is not a subclass of {package}.{base.__qualname__}", name=name)
    return found


def known_plugins(*, what: str, table: Mapping[str, str], group: str) -> dict[str, str]:
    """Return the `module:Class` of every name: first those of the table, then those of installed packages.

    Raises PluginError if a name is taken twice.
    """
    found = dict(table)
    for point in _installed(group, tuple(sys.path)):
        if found.get(point.name, point.value) != point.value:
            raise PluginError(
                f"{what} '{point.name}' is defined twice: {found[point.name]} and {point.value}; uninstall one of them",
                name=point.name,
            )
        found[point.name] = point.value
    return found


@lru_cache(maxsize=16)
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Return a group's entry points on Python's path. They are kept: to find them, a file of every package is read."""
    return entry_points(group=group)


def _imported(reference: str, what: str) -> Any:
    module, _, attribute = reference.rpartition(":")
    file = file_of(reference)
    try:
        found: Any = import_module(module) if file is None else _run(file)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        missing = missing_package(error, f"{what} {reference}")
        raise missing or PluginError(f"{what} {reference} can't be imported: {error}", name=reference) from error
    except (AttributeError, OSError, SyntaxError) as error:
        raise PluginError(f"{what} {reference} can't be imported: {error}", name=reference) from error
    return found


def _run(file: Path) -> ModuleType:
    """Import a file, which may import its neighbours as a script may; once in a process."""
    file = file.resolve(strict=True)
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None  # the suffix is Python's
    module = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module
