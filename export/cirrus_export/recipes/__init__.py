"""One file per CIR method. Importing the package registers those of the tree."""

from cirrus_export.recipes import (
    bge_vl,
    cir_lvlm,
    clip,
    clip4cir,
    hint,
    magiclens,
    retrieval_dpo,
    searle,
    sprc,
    transagg,
    transagg_union,
    vlm_embedder,
)
from cirrus_export.recipes.recipe import Recipe
from cirrus_export.recipes.registry import RECIPES, recipe_named, recipes, register

__all__ = [
    "RECIPES",
    "Recipe",
    "bge_vl",
    "cir_lvlm",
    "clip",
    "clip4cir",
    "hint",
    "magiclens",
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
