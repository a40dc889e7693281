"""What the pages say of recipes is what the recipes declare."""

from __future__ import annotations

import re
from pathlib import Path

from cirrus_client.bundle import CaptionJoin
from cirrus_export.recipes.registry import recipes

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_explains_every_option_of_every_recipe() -> None:
    table = (DOCS / "export-your-checkpoint.md").read_text().partition("### Options")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`.*) \|$", table, re.MULTILINE)]
    explained = {(option, of) for row in rows for option in words(row[0]) for of in words(row[1])}
    declared = {(option, name) for name, recipe in recipes().items() for option in recipe.options_type.model_fields}
    assert explained == declared


def test_the_page_lists_how_each_recipe_words_captions() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", (DOCS / "measure-retrieval.md").read_text(), re.MULTILINE)
    listed = {name: join for join, names in rows if join != CaptionJoin.CAPITALISED for name in words(names)}
    assert listed == {
        name: recipe.caption_join
        for name, recipe in recipes().items()
        if recipe.caption_join is not CaptionJoin.CAPITALISED
    }


def words(cell: str) -> list[str]:
    return re.findall(r"`([\w-]+)`", cell)
