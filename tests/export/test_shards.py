"""Weights in several files beside an index, as transformers saves large models, are one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.folder import weights_file
from cirrus_export.checkpoints.state import read_state_dict
from cirrus_export.recipes import recipe_named
from cirrus_export.recipes.recognition import read_head_of

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import CLIPConfig, CLIPModel

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPModel(CLIPConfig(text_config=tower | {"vocab_size": 256}, vision_config=tower | {"image_size": 64}))


@pytest.fixture
def folder(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    return tmp_path


def of_torch(folder: Path) -> Path:
    """Return a folder of the same weights as transformers saved them before safetensors."""
    index = json.loads((folder / INDEX).read_text())
    out = folder / "bin"
    out.mkdir()
    names = {
        name: name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        for name in set(index["weight_map"].values())
    }
    for name, renamed in names.items():
        torch.save(load_file(folder / name), out / renamed)
    index["weight_map"] = {key: names[name] for key, name in index["weight_map"].items()}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return out


@pytest.mark.parametrize("form", [lambda folder: folder, of_torch], ids=["safetensors", "torch"])
def test_shards_are_read_as_one_file(form: Callable[[Path], Path], model, folder) -> None:
    state = read_state_dict(weights_file(form(folder)))
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def reindex(folder: Path, **names: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | names}))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda folder: shards(folder)[1].unlink(),
            r"in \d+ files, and model-00002-of-\d+\.safetensors is not beside it",
        ),
        (lambda folder: save_file({}, shards(folder)[1]), r"model-00002-of-\d+\.safetensors: is no part of"),
        (lambda folder: shards(folder)[1].write_bytes(shards(folder)[0].read_bytes()), "is no part of"),
        (lambda folder: reindex(folder, lost=shards(folder)[0].name), "lost is in none of its files"),
        (lambda folder: reindex(folder, there="../model.safetensors"), "names no files of weights beside it"),
        (lambda folder: (folder / INDEX).write_text("{"), "can't be read as JSON"),
    ],
    ids=["missing", "empty", "twice", "lost", "elsewhere", "cut"],
)
def test_shards_that_are_not_whole_are_refused(damage: Callable[[Path], object], reason: str, folder) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=reason):
        read_state_dict(weights_file(folder))


def test_one_shard_alone_names_the_index(folder) -> None:
    with pytest.raises(CheckpointError, match=rf"is one of several files of weights: name {INDEX}"):
        read_state_dict(shards(folder)[0])


def test_a_head_in_shards_is_refused_since_its_index_is_that_of_the_next_one(folder) -> None:
    with pytest.raises(CheckpointError, match="a head is known by the content of one file"):
        read_head_of(recipe_named("sprc"), folder / INDEX)
