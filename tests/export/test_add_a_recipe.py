"""What docs/add-a-recipe.md shows works as it stands there, from files outside the tree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import PluginError
from cirrus_export.backbones.registry import FAMILIES, find_backbone
from cirrus_export.gate.probe import default_probe
from cirrus_export.pipeline import ExportRequest, export
from cirrus_export.recipes import RECIPES, recipe_named, recipes

from transformers import CLIPConfig, CLIPModel  # isort: skip  (behind cirrus_export, which lets torchvision be imported)

PAGE = Path(__file__).parents[2] / "docs" / "add-a-recipe.md"
pytestmark = pytest.mark.export


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path that holds the page's two files."""
    folder = tmp_path / "outside"
    folder.mkdir()
    combiner, hf_clip = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "combiner.py").write_text(combiner)
    (folder / "hf_clip.py").write_text(hf_clip)
    monkeypatch.syspath_prepend(folder)
    yield folder
    RECIPES.pop("combiner", None)
    for module in ("combiner", "hf_clip"):
        sys.modules.pop(module, None)


def install(folder: Path, entry_points: str) -> None:
    """Write the metadata that pip would write for a package with entry points."""
    metadata = folder / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)


@pytest.mark.usefixtures("outside")
def test_a_recipe_outside_the_tree_is_exported_by_its_class(weights, photos, tmp_path) -> None:
    torch.save({"weight": torch.randn(64, 128), "bias": torch.randn(64)}, tmp_path / "head.pt")
    request = ExportRequest(
        "combiner:Combiner", "cirrus-demo", str(weights.clip), str(tmp_path / "head.pt"), tmp_path / "bundle"
    )
    bundle = export(request, default_probe(queries=4, gallery=12))
    assert bundle.spec.recipe == "combiner:Combiner"
    red, blue = LocalEncoder(bundle).encode_queries([sorted(photos.iterdir())[0]] * 2, ["in red", "in blue"])
    assert not np.allclose(red, blue)


def test_an_installed_recipe_is_found_by_its_name(outside: Path) -> None:
    install(outside, "[cirrus.recipes]\ncombiner = combiner:Combiner\n")
    assert recipe_named("combiner").__module__ == "combiner"
    assert "combiner" in recipes()


def test_an_installed_recipe_does_not_take_a_name_of_the_tree(outside: Path) -> None:
    install(outside, "[cirrus.recipes]\nclip = combiner:Combiner\n")
    both = "cirrus_export.recipes.clip:Clip and combiner:Combiner"
    with pytest.raises(PluginError, match=f"'clip' is defined twice: {both}"):
        recipe_named("clip")


@pytest.mark.parametrize("reference", ["no_such_module:Recipe", "combiner:NoSuchClass", "combiner:CombinerHead"])
@pytest.mark.usefixtures("outside")
def test_a_reference_to_no_recipe_is_an_error_that_names_it(reference: str) -> None:
    with pytest.raises(PluginError, match=reference) as refused:
        recipe_named(reference)
    assert refused.value.name == reference


@pytest.mark.usefixtures("outside")
def test_a_backbone_family_outside_the_tree_is_exported_by_its_class(photos, tmp_path) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407, "bos_token_id": 49406}
    vision = tower | {"image_size": 64, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(tmp_path / "clip")
    request = ExportRequest("clip", "hf_clip:HfClipFamily", str(tmp_path / "clip"), None, tmp_path / "bundle")
    encoder = LocalEncoder(export(request, default_probe(queries=4, gallery=12)))
    assert encoder.encode_queries([None], ["a red dress"]).shape == (1, 32)


def test_an_installed_family_is_found_by_its_names(outside: Path, tmp_path: Path) -> None:
    install(outside, "[cirrus.backbones]\ntransformers-clip = hf_clip:HfClipFamily\n")
    assert type(find_backbone("hf-clip", str(tmp_path)).family).__name__ == "HfClipFamily"


def test_a_backbones_name_is_not_taken_twice(outside: Path, tmp_path: Path) -> None:
    code = (outside / "hf_clip.py").read_text()
    (outside / "hf_clip.py").write_text(code.replace('("hf-clip",)', '("blip-base-coco",)'))
    install(outside, "[cirrus.backbones]\nother-blip = hf_clip:HfClipFamily\n")
    with pytest.raises(PluginError, match="'blip-base-coco' is defined twice: by BlipFamily and HfClipFamily"):
        find_backbone("blip-base-coco", str(tmp_path))


def test_a_family_of_the_tree_is_one_line() -> None:
    for name, reference in FAMILIES.items():
        module, _, kind = reference.partition(":")
        assert module.startswith("cirrus_export.backbones."), name
        assert kind.endswith("Family")
