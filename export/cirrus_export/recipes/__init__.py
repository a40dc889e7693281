"""One file a CIR method, registered by name."""

from cirrus_export.recipes import clip, transagg_union
from cirrus_export.recipes.recipe import RECIPES, Recipe, recipe_named

__all__ = ["RECIPES", "Recipe", "clip", "recipe_named", "transagg_union"]
