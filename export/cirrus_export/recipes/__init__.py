"""One file a CIR method, registered by name."""

from cirrus_export.recipes import cir_lvlm, clip, retrieval_dpo, searle, sprc, transagg, transagg_union
from cirrus_export.recipes.recipe import RECIPES, Recipe, recipe_named

__all__ = [
    "RECIPES",
    "Recipe",
    "cir_lvlm",
    "clip",
    "recipe_named",
    "retrieval_dpo",
    "searle",
    "sprc",
    "transagg",
    "transagg_union",
]
