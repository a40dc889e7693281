"""Tell from a checkpoint's keys for which recipe it was trained, so that a mistyped `--recipe` is refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.shards import is_index
from cirrus_export.checkpoints.state import StateDict, tensor_names, without_trainer
from cirrus_export.checkpoints.wrappers import listed
from cirrus_export.recipes.recipe import Recipe
from cirrus_export.recipes.registry import RECIPES


def read_head_of(recipe: type[Recipe], path: Path) -> StateDict:
    """Read a head's checkpoint, and check that its keys are not those of another recipe.

    A UNION file has all that TransAgg needs and its own target head beside it: read as TransAgg, the target head would
    be left out. Raises CheckpointError for a file that can't be read, or, with the names of the recipes that use it
    whole, for one of another recipe; also for an index of shards, which would not tell a head from the next one.
    """
    if is_index(path):
        raise CheckpointError(f"checkpoint {path}: a head is known by the content of one file; save it as one")
    try:
        head = recipe.read_head(path)
    except CheckpointError as error:
        fitting = _recipes_of(tensor_names(path))
        if not fitting or recipe.name in fitting:
            raise
        raise CheckpointError(f"{error}; it is a head for --recipe {_either(fitting)}") from None
    head = without_trainer(head, lambda state: _matched(recipe, state) > 0)
    _check(recipe, head if _matched(recipe, head) else tensor_names(path), path)
    return head


def _check(recipe: type[Recipe], keys: Collection[str], path: Path) -> None:
    better = _recipes_of(keys)
    if recipe.head_keys and not better and not any(_any_begins(prefix, keys) for prefix in recipe.head_keys):
        begins = sorted({key.partition(".")[0] for key in keys})
        raise CheckpointError(
            f"checkpoint {path}: has no {', '.join(recipe.head_keys)}, which recipe {recipe.name} needs; its keys "
            f"begin with {listed(begins)}"
        )
    if not recipe.head_keys or not better or _matched(recipe, keys) >= _matched(RECIPES[better[0]], keys):
        return
    if _matched(recipe, keys):
        surplus = [prefix for prefix in RECIPES[better[0]].head_keys if prefix not in recipe.head_keys]
        raise CheckpointError(
            f"checkpoint {path}: {', '.join(surplus)} are trained weights, and recipe {recipe.name} leaves them out: "
            f"use --recipe {_either(better)}, or save the file without them"
        )
    missing = [prefix for prefix in recipe.head_keys if not _any_begins(prefix, keys)]
    raise CheckpointError(
        f"checkpoint {path}: has no {', '.join(missing)}, which recipe {recipe.name} needs: use --recipe "
        f"{_either(better)}"
    )


def _recipes_of(keys: Collection[str]) -> list[str]:
    """Return the names of the recipes that use most of these keys, sorted; none if no recipe's keys are among them."""
    matched = {name: count for name, recipe in RECIPES.items() if (count := _matched(recipe, keys))}
    most = max(matched.values(), default=0)
    return sorted(name for name, count in matched.items() if count == most)


def _matched(recipe: type[Recipe], keys: Collection[str]) -> int:
    """Return the number of a recipe's prefixes if each begins some key, else 0."""
    return len(recipe.head_keys) if all(_any_begins(prefix, keys) for prefix in recipe.head_keys) else 0


def _any_begins(prefix: str, keys: Collection[str]) -> bool:
    return any(key.startswith(prefix) for key in keys)


def _either(names: list[str]) -> str:
    return " or ".join(names)
