"""Find plug-ins by name in a table or in the entry points of installed packages, or as `module:Class`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from cirrus_client.errors import PluginError
from cirrus_client.extras import missing_package

T = TypeVar("T")


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
        raise PluginError(f"there is no {what} '{name}'; there are: {known}, or give module:Class", name=name)
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
    for point in entry_points(group=group):
        if found.get(point.name, point.value) != point.value:
            raise PluginError(
                f"{what} '{point.name}' is defined twice: {found[point.name]} and {point.value}; uninstall one of them",
                name=point.name,
            )
        found[point.name] = point.value
    return found


def _imported(path: str, what: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        missing = missing_package(error, f"{what} {path}")
        raise missing or PluginError(f"{what} {path} can't be imported: {error}", name=path) from error
    except AttributeError as error:
        raise PluginError(f"{what} {path} can't be imported: {error}", name=path) from error
    return found
