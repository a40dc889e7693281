"""Find recipes and backbones outside the tree: by an installed entry point, or as `module:Class`."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points

from cirrus_client.errors import PluginError


def is_reference(name: str) -> bool:
    """Return whether a name has the form `module:Class`."""
    return ":" in name


def load_reference(reference: str) -> object:
    """Import `module:Class` and return the class. Raises PluginError if there is no such module or class."""
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there, and what it imports is not
        raise PluginError(
            f"'{reference}': there is no module '{error.name}'; install it, or put its folder on PYTHONPATH",
            name=reference,
        ) from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise PluginError(f"'{reference}': {module.__file__} has no '{attribute}'", name=reference) from None


def installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, not loaded. Raises PluginError if two packages give the same name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise PluginError(
                f"'{point.name}' is taken twice in the entry points {group}: {other.value} and {point.value}; "
                "uninstall one of the two packages",
                name=point.name,
            )
        found[point.name] = point
    return found


def origin(kind: type) -> str:
    """Return a class as `module:Class`, for messages."""
    return f"{kind.__module__}:{kind.__qualname__}"
