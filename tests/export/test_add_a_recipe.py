"""What docs/add-a-recipe.md shows works as it stands there, from files outside the tree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import ExportError, PluginError
from cirrus_export.backbones.registry import FAMILIES, find_backbone
from cirrus_export.compile.onnx_graph import write_onnx
from cirrus_export.gate.probe import default_probe
from cirrus_export.graph import Graph, vector
from cirrus_export.new_head import request_like
from cirrus_export.pipeline import ExportRequest, export
from cirrus_export.recipes import RECIPES, recipe_named, recipes

from transformers import CLIPConfig, CLIPModel  # isort: skip  (behind cirrus_export, which lets torchvision be imported)

PAGE = Path(__file__).parents[2] / "docs" / "add-a-recipe.md"
pytestmark = pytest.mark.export


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds the page's two files."""
    folder = tmp_path / "outside"
    folder.mkdir()
    combiner, hf_clip = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "combiner.py").write_text(combiner)
    (folder / "hf_clip.py").write_text(hf_clip)
    yield folder
    RECIPES.pop("combiner", None)


@pytest.fixture
def outside(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same folder, on the path."""
    monkeypatch.syspath_prepend(files)
    yield files
    for module in ("combiner", "hf_clip"):
        sys.modules.pop(module, None)


def install(folder: Path, entry_points: str) -> None:
    """Write the metadata that pip would write for a package with entry points."""
    metadata = folder / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)


def test_a_recipe_in_a_file_is_exported_by_its_class(files, weights, photos, tmp_path) -> None:
    torch.save({"weight": torch.randn(64, 128), "bias": torch.randn(64)}, tmp_path / "head.pt")
    recipe = f"{files / 'combiner.py'}:Combiner"
    request = ExportRequest(recipe, "cirrus-demo", str(weights.clip), str(tmp_path / "head.pt"), tmp_path / "bundle")
    bundle = export(request, default_probe(queries=4, gallery=12))
    assert bundle.spec.recipe == recipe
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


def test_a_module_on_the_path_is_found(outside: Path) -> None:
    assert recipe_named("combiner:Combiner").__module__ == "combiner"
    assert recipe_named("combiner:Combiner") is recipe_named("combiner")


def test_a_file_is_run_once_and_may_import_its_neighbours(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    (files / "neighbour.py").write_text("count = 0")
    text = (files / "combiner.py").read_text()
    (files / "combiner.py").write_text(f"import neighbour\nneighbour.count += 1\n{text}")
    before = list(sys.path)
    found = recipe_named("combiner.py:Combiner")
    assert recipe_named(f"{files / 'combiner.py'}:Combiner") is found
    assert sys.modules.pop("neighbour").count == 1
    assert sys.path == before
    assert "combiner" in recipes()
    (files / "again").mkdir()
    (files / "again" / "combiner.py").write_text(text)
    with pytest.raises(PluginError, match="recipe 'combiner' is defined twice"):
        recipe_named("again/combiner.py:Combiner")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("gone.py:Combiner", "No such file"),
        ("combiner.py:Gone", "has no attribute 'Gone'"),
        ("combiner.py:CombinerHead", "is not a subclass of"),
        ("broken.py:Combiner", r"broken\.py, line 1"),
        ("lacking.py:Combiner", "No module named 'gone'"),
    ],
)
def test_a_file_that_holds_no_recipe_is_named_with_the_reason(
    reference: str, reason: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    (files / "broken.py").write_text("class Combiner(:")
    (files / "lacking.py").write_text("import gone")
    with pytest.raises(PluginError, match=f"{re.escape(reference)}.*{reason}"):
        recipe_named(reference)


def test_a_file_that_a_bundle_names_is_not_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for field in ("recipe", "backbone"):
        spec = tiny_bundle.spec.model_copy(update={field: f"{evil}:Evil"})
        with pytest.raises(ExportError, match="a file that a bundle names is not run: `cirrus export --recipe"):
            request_like(Bundle(tiny_bundle.root, spec), tmp_path / "head.pt", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_backbone_family_in_a_file_is_exported_by_its_class(files, photos, tmp_path) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407, "bos_token_id": 49406}
    vision = tower | {"image_size": 64, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(tmp_path / "clip")
    family = f"{files / 'hf_clip.py'}:HfClipFamily"
    request = ExportRequest("clip", family, str(tmp_path / "clip"), None, tmp_path / "bundle")
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


class Decides(torch.nn.Module):
    """What it computes depends on the values that it is given, which no graph has."""

    def forward(self, image_embedding: torch.Tensor) -> torch.Tensor:
        return image_embedding if image_embedding.sum() > 0 else -image_embedding


def test_a_module_that_torch_can_not_export_is_named(tmp_path: Path) -> None:
    inputs, outputs = (vector("image_embedding", 4),), (vector("query_embedding", 4),)
    graph = Graph("query_head", Decides(), inputs=inputs, outputs=outputs)
    with pytest.raises(
        ExportError, match=r"graph query_head: torch can't export its module, Decides: .*data-dependent"
    ):
        write_onnx(graph, tmp_path / "query_head.onnx")
