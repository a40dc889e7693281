"""Recipes by name: those of the tree, of installed packages (entry points `cirrus.recipes`), of a module or a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cirrus_client.errors import PluginError
from cirrus_client.plugins import find_subclass, known_plugins
from cirrus_export.recipes.recipe import Recipe

RECIPES: dict[str, type[Recipe]] = {}
ENTRY_POINTS = "cirrus.recipes"
R = TypeVar("R", bound=Recipe)


def register(name: str) -> Callable[[type[R]], type[R]]:
    """Make a recipe available under a name: a class decorator. Raises PluginError if another class has the name."""

    def add(recipe: type[R]) -> type[R]:
        other = RECIPES.get(name)
        if other is not None and _path(other) != _path(recipe):
            raise PluginError(
                f"recipe '{name}' is defined twice: {_path(other)} and {_path(recipe)}; rename one of them", name=name
            )
        recipe.name = name
        RECIPES[name] = recipe
        return recipe

    return add


def recipes() -> dict[str, type[Recipe]]:
    """Return every recipe by name, those of installed packages included.

    Raises PluginError if a name is taken twice.
    """
    return {name: recipe_named(name) for name in known_plugins(what="recipe", table=_table(), group=ENTRY_POINTS)}


def recipe_named(name: str) -> type[Recipe]:
    """Return a recipe by its name, as `module:Class` or as `FILE.py:Class`.

    Raises PluginError if there is no such recipe, it can't be imported, or two have the name.
    """
    found = find_subclass(Recipe, name, what="recipe", table=_table(), group=ENTRY_POINTS)
    return found if "name" in vars(found) else register(name)(found)


def _table() -> dict[str, str]:
    return {name: _path(recipe) for name, recipe in RECIPES.items()}


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
