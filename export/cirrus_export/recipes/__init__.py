"""One file per CIR method. Importing the package registers those of the tree."""

from cirrus_export.recipes import cir_lvlm, clip, retrieval_dpo, searle, sprc, transagg, transagg_union, vlm_embedder
from cirrus_export.recipes.recipe import Recipe
from cirrus_export.recipes.registry import RECIPES, recipe_named, recipes, register

__all__ = [
    "RECIPES",
    "Recipe",
    "cir_lvlm",
    "clip",
    "recipe_named",
    "recipes",
    "register",
    "retrieval_dpo",
    "searle",
    "sprc",
    "transagg",
    "transagg_union",
    "vlm_embedder",
]
