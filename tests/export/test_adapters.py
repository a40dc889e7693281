"""LoRA adapters as peft saves them, on a small Qwen-VL; other readers of folders refuse them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from cirrus_client.errors import CheckpointError
from cirrus_export.backbones.lvlm import load_lvlm
from cirrus_export.backbones.registry import find_backbone
from cirrus_export.checkpoints.state import fingerprint
from cirrus_export.pipeline import build_recipe
from cirrus_export.suggester.export import export_suggester
from tests.export.test_vlm_embedder import SIZE_PX, request, write_checkpoint

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
PLAIN = {"r": 4, "lora_alpha": 12, "init_lora_weights": False}
LANGUAGE, VISION = ["q_proj", "down_proj"], ["qkv", "linear_fc1", "fc1"]


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen2-vl"])
def base(request, tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / request.param)


def whole(folder: Path) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def inner(folder: Path) -> torch.nn.Module:
    return whole(folder).model


def train(base: Path, folder: Path, model: torch.nn.Module, config: LoraConfig | IA3Config) -> PeftModel:
    """Save an adapter with random factors, and return the model with it."""
    torch.manual_seed(7)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return adapted


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): value for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


@pytest.mark.parametrize("of", [whole, inner])
@pytest.mark.parametrize(
    "config",
    [
        PLAIN | {"target_modules": LANGUAGE},
        PLAIN | {"target_modules": [*LANGUAGE, *VISION], "use_rslora": True},
        PLAIN | {"target_modules": LANGUAGE, "use_dora": True},
        PLAIN | {"target_modules": LANGUAGE, "alpha_pattern": {"down_proj": 40}, "rank_pattern": {"q_proj": 2}},
        PLAIN | {"target_modules": r".*language_model.*(q|v)_proj", "layers_to_transform": None},
    ],
    ids=["language", "both towers, rank-stabilised", "dora", "patterns", "an expression"],
)
def test_an_adapter_is_merged_as_peft_merges_it(config, of, base, tmp_path) -> None:
    folder = tmp_path / base.name
    merged = train(base, folder, of(base), LoraConfig(**config)).merge_and_unload()
    if of is inner:  # a folder of the whole has the embedding model under another name
        outer = whole(base)
        outer.model = merged
        merged = outer
    merged.save_pretrained(tmp_path / "merged" / base.name)
    (tmp_path / "merged" / base.name / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    adapted, expected, plain = (
        build_recipe(request(path, tmp_path / "out")) for path in (folder, tmp_path / "merged" / base.name, base)
    )
    size_px = SIZE_PX[base.name]
    pixels, ids = torch.randn(2, 3, size_px, size_px), torch.randint(6, 300, (2, 9))
    with torch.no_grad():
        found, wanted, without = (recipe.query(pixels, ids) for recipe in (adapted, expected, plain))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert float((found * without).sum(dim=-1).max()) < 0.9999


def test_names_of_an_earlier_transformers_are_found(base, tmp_path) -> None:
    """There the language model's layers were the model's."""
    folders = [tmp_path / name / base.name for name in ("new", "old")]
    for folder in folders:
        train(base, folder, whole(base), LoraConfig(**PLAIN, target_modules=LANGUAGE))
        edit(folder / "adapter_config.json", alpha_pattern={"language_model.layers.0.self_attn.q_proj": 99})
    rename(folders[1], lambda name: name.replace("model.language_model.layers", "model.layers"))
    edit(folders[1] / "adapter_config.json", alpha_pattern={"^model.layers.0.self_attn.q_proj": 99})
    new, old = (find_backbone(base.name, str(folder), None).load().model.state_dict() for folder in folders)
    for name, value in new.items():
        torch.testing.assert_close(old[name], value, atol=0, rtol=0)


def test_the_task_of_the_whole_that_was_trained_changes_nothing(base, tmp_path) -> None:
    """Trainers of language models name it, and the embedding model has no head for words."""
    folder = tmp_path / base.name
    train(base, folder, whole(base), LoraConfig(**PLAIN, target_modules=LANGUAGE))
    plain = fingerprint(find_backbone(base.name, str(folder), None).load())
    edit(folder / "adapter_config.json", task_type="CAUSAL_LM")
    assert fingerprint(find_backbone(base.name, str(folder), None).load()) == plain


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), r"adapter_model\.safetensors: is missing"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "is no configuration of an adapter"),
        (
            lambda folder: edit(folder / "adapter_config.json", base_model_name_or_path="Qwen/X"),
            "'Qwen/X', which is no",
        ),
        (lambda folder: edit(folder / "adapter_config.json", bias="all"), "has trained more than LoRA's factors"),
        (lambda folder: edit(folder / "adapter_config.json", modules_to_save=["norm"]), "has trained more than LoRA's"),
        (lambda folder: edit(folder / "adapter_config.json", peft_type="IA3"), "of the kind IA3"),
        (lambda folder: edit(folder / "adapter_config.json", peft_type="NEW"), "can't be merged"),
        (lambda folder: edit(folder / "adapter_config.json", r=3), "can't be merged"),
        (lambda folder: rename(folder, lambda name: name.replace("layers.0", "layers.77")), "is no factor of LoRA"),
        (lambda folder: rename(folder, lambda name: name.replace(".lora_A.", ".lora_C.")), "do not fit"),
        (lambda folder: rename(folder, lambda name: name.replace(".lora_A.weight", ".bias")), "is no factor of LoRA"),
        (lambda folder: (folder / "config.json").write_text("{}"), "holds a model and an adapter"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused(damage, reason, base, tmp_path) -> None:
    folder = tmp_path / base.name
    train(base, folder, whole(base), LoraConfig(**PLAIN, target_modules=LANGUAGE))
    damage(folder)
    with pytest.raises(CheckpointError, match=reason):
        find_backbone(base.name, str(folder), None).load()


def test_an_adapter_of_an_adapter_is_refused(base, tmp_path) -> None:
    for name, below in (("first", base), ("second", tmp_path / "first")):
        train(below, tmp_path / name, whole(base), LoraConfig(**PLAIN, target_modules=LANGUAGE))
    with pytest.raises(CheckpointError, match=r"first: holds an adapter .* which is not merged"):
        find_backbone(base.name, str(tmp_path / "second"), None).load()


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: find_backbone("ViT-B-32", str(folder), None).load(),
        lambda folder: find_backbone("from-checkpoint", str(folder), None).load(),
        lambda folder: load_lvlm(folder),
        lambda folder: export_suggester(folder, folder / "out", ()),
    ],
    ids=["open_clip", "from-checkpoint", "lvlm", "suggester"],
)
def test_every_other_folder_with_an_adapter_is_refused_with_the_cure(read, tmp_path) -> None:
    for name in ("adapter_config.json", "config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an adapter .*merge_and_unload"):
        read(tmp_path)
