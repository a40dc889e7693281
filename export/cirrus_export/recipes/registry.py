"""Recipes by name: those of the tree, of installed packages (entry points `cirrus.recipes`), and `module:Class`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from cirrus_client.errors import ExportError, PluginError
from cirrus_export.plugins import installed, is_reference, load_reference, origin
from cirrus_export.recipes.recipe import Recipe

RECIPES: dict[str, type[Recipe]] = {}
ENTRY_POINTS = "cirrus.recipes"
R = TypeVar("R", bound=Recipe)


def register(name: str) -> Callable[[type[R]], type[R]]:
    """Make a recipe available under a name: a class decorator. Raises PluginError if another class has the name."""

    def add(recipe: type[R]) -> type[R]:
        other = RECIPES.get(name)
        if other is not None and origin(other) != origin(recipe):
            both = f"{origin(other)} and {origin(recipe)}"
            raise PluginError(f"recipe '{name}' is taken twice: by {both}; rename one of them", name=name)
        recipe.name = name
        RECIPES[name] = recipe
        return recipe

    return add


def recipes() -> Mapping[str, type[Recipe]]:
    """Return every recipe by name, those of installed packages included.

    Raises PluginError if a name is taken twice.
    """
    for name, point in installed(ENTRY_POINTS).items():
        register(name)(_checked(point.value, point.load()))
    return RECIPES


def recipe_named(name: str) -> type[Recipe]:
    """Return a recipe by its name or as `module:Class`.

    Raises ExportError naming those there are, PluginError for a reference that is no recipe.
    """
    if is_reference(name):
        recipe = _checked(name, load_reference(name))
        return recipe if "name" in vars(recipe) else register(name)(recipe)
    if name in RECIPES:
        return RECIPES[name]
    known = recipes()
    if name not in known:
        raise ExportError(
            f"there is no recipe '{name}'; there are: {', '.join(sorted(known))}; one outside the tree is named "
            "module:Class"
        )
    return known[name]


def _checked(reference: str, recipe: object) -> type[Recipe]:
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise PluginError(f"'{reference}' is not a class derived from {origin(Recipe)}", name=reference)
    return recipe
