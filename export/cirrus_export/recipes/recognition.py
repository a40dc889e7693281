"""Tell from a checkpoint's keys for which recipe it was trained, so that a mistyped `--recipe` is refused."""

from __future__ import annotations

from collections.abc import Collection

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.recipes.recipe import Recipe
from cirrus_export.recipes.registry import RECIPES


def check_recipe(recipe: type[Recipe], head: StateDict) -> None:
    """Check that a head's keys are not those of another recipe.

    A UNION file has all that TransAgg needs and its own target head beside it: read as TransAgg, the target head would
    be left out. Raises CheckpointError that names the recipes which use the file whole.
    """
    better = recipes_of(head)
    if not recipe.head_keys or not better or _matched(recipe, head) >= _matched(RECIPES[better[0]], head):
        return
    fitting = RECIPES[better[0]]
    way_out = f"use --recipe {' or '.join(better)}"
    surplus = [key for key in fitting.head_keys if key not in recipe.head_keys]
    if _matched(recipe, head):
        raise CheckpointError(
            f"checkpoint {head.source}: {', '.join(surplus)} are trained weights, and recipe {recipe.name} leaves them "
            f"out: {way_out}, or save the file without them"
        )
    missing = [prefix for prefix in recipe.head_keys if not _any_begins(prefix, head)]
    raise CheckpointError(
        f"checkpoint {head.source}: has no {', '.join(missing)}, which recipe {recipe.name} needs: {way_out}"
    )


def recipes_of(keys: Collection[str]) -> list[str]:
    """Return the names of the recipes that use most of these keys, sorted; none if no recipe's keys are among them."""
    matched = {name: count for name, recipe in RECIPES.items() if (count := _matched(recipe, keys))}
    most = max(matched.values(), default=0)
    return sorted(name for name, count in matched.items() if count == most)


def _matched(recipe: type[Recipe], keys: Collection[str]) -> int:
    """Return the number of a recipe's prefixes if each begins some key, else 0."""
    return len(recipe.head_keys) if all(_any_begins(prefix, keys) for prefix in recipe.head_keys) else 0


def _any_begins(prefix: str, keys: Collection[str]) -> bool:
    return any(key.startswith(prefix) for key in keys)
