"""How images were prepared for a CLIP's file is read beside it, and pixels are those of transformers' own processor."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.image.preprocess import Crop, Interpolation, Pad, preprocess
from cirrus_client.tokenizer import TextCleaning
from cirrus_export.backbones.registry import load_backbone
from cirrus_export.pipeline import ExportRequest, build_recipe
from cirrus_export.recipes.clip import Clip
from cirrus_export.recipes.searle import Searle

SIDE = 32
LEVELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
SQUARE = {"height": SIDE, "width": SIDE}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = tower | {"vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406}
    vision = tower | {"image_size": SIDE, "patch_size": 8}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(weights, tmp_path) -> Path:
    for file in weights.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "settings",
    [
        LEVELS | {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, "resample": 2},
        LEVELS | {"size": SIDE, "crop_size": SIDE, "resample": 3},
        {"size": SQUARE, "do_center_crop": False, "resample": 2},
        {"size": SQUARE, "crop_size": SQUARE},
    ],
)
def test_pixels_are_those_of_transformers_own_processor(folder, name: str, settings: dict) -> None:
    content = {"image_processor": settings} if name == "processor_config.json" else settings
    (folder / name).write_text(json.dumps(content))
    spec = Clip.preprocess(load_backbone("from-checkpoint", str(folder)).preprocess)
    noise = np.random.default_rng(0).integers(0, 255, (70, 64, 3), dtype=np.uint8)  # an odd margin
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    published = CLIPImageProcessorPil(**settings)(images=[Image.fromarray(noise)], return_tensors="np")
    np.testing.assert_allclose(preprocess(file.getvalue(), spec), published["pixel_values"][0], atol=1e-5)


def test_of_two_files_of_settings_transformers_own_choice_is_read(folder) -> None:
    """A processor that transformers 5 saves into an older folder leaves the older file there."""
    settings = {"size": SIDE, "crop_size": SIDE}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings | LEVELS}))
    published = CLIPImageProcessorPil.from_pretrained(folder)
    spec = load_backbone("from-checkpoint", str(folder)).preprocess
    assert (spec.mean, spec.std) == (tuple(published.image_mean), tuple(published.image_std))


def test_a_method_with_a_transform_of_its_own_crops_as_published(folder) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(LEVELS | {"size": SIDE, "crop_size": SIDE}))
    own = load_backbone("from-checkpoint", str(folder)).preprocess
    assert (Clip.preprocess(own).crop, Searle.preprocess(own).crop) == (Crop.FLOOR, Crop.ROUND)
    assert Searle.preprocess(own).mean == (0.5, 0.4, 0.3)


def test_texts_are_cleaned_as_by_the_processor_that_prepares_the_images(folder, tmp_path) -> None:
    """Hugging Face's tokenizer of CLIP repairs no text, OpenAI's does."""
    request = ExportRequest("clip", "from-checkpoint", str(folder), None, tmp_path / "out")
    assert build_recipe(request).prompt.cleaning is None
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": SIDE, "crop_size": SIDE}))
    assert build_recipe(request).prompt.cleaning is TextCleaning.NFC


def test_without_settings_images_are_prepared_as_openais(folder) -> None:
    assert load_backbone("from-checkpoint", str(folder)).preprocess.mean[0] == 0.48145466


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"do_normalize": False}, "do_normalize is False, and a CLIP needs this step"),
        ({"size": SIDE, "crop_size": SIDE, "resample": 0}, r"resample 0; Cirrus resizes bicubic \(3\) or bilinear"),
        ({"size": SIDE, "crop_size": SIDE, "rescale_factor": 1.0}, "rescale_factor 1.0, expected 1/255"),
        (
            {"size": {"shortest_edge": 40}, "crop_size": SQUARE},
            "size {'shortest_edge': 40} and crop_size {'height': 32",
        ),
        ({"size": {"longest_edge": SIDE}, "crop_size": SQUARE}, "size {'longest_edge': 32}"),
        ({"size": SIDE, "do_center_crop": False}, "size 32 and crop_size None"),
        ({"size": [SIDE], "crop_size": SIDE}, "its settings of images can't be read"),
        ({"size": SIDE, "crop_size": SIDE, "rescale_factor": "x"}, "its settings of images can't be read"),
        ({"size": SIDE, "crop_size": SIDE, "image_mean": ["a", 1, 2]}, "its settings of images can't be read"),
        ({"size": SIDE, "crop_size": SIDE, "image_std": 1}, "its settings of images can't be read"),
        ({"size": 64, "crop_size": 64}, "prepares images of 64 px, and the model reads 32"),
    ],
)
def test_settings_that_cirrus_has_not_are_refused_by_name(folder, settings: dict, reason: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises((CheckpointError, ExportError), match=reason) as caught:
        load_backbone("from-checkpoint", str(folder))
    assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_open_clips_settings_beside_its_file_are_used(tmp_path, name: str) -> None:
    """Both towers and pooled models read them: a fine-tuned model keeps its architecture's name, whatever its loss."""
    backbone = load_backbone(name, "random")
    state = (backbone.clip if name == "ViT-B-32" else backbone.model).state_dict() | {"logit_bias": torch.tensor(-10.0)}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "open_clip_model.safetensors")
    settings = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    written = {"model_cfg": {}, "preprocess_cfg": settings | {"size": 224}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    spec = load_backbone(name, str(tmp_path)).preprocess
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (spec.interpolation, spec.pad) == (Interpolation.BILINEAR, Pad.STRETCH)
    written["preprocess_cfg"]["interpolation"] = "random"  # in training alone
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    assert load_backbone(name, str(tmp_path)).preprocess.interpolation is Interpolation.BICUBIC
    written["preprocess_cfg"]["resize_mode"] = "longest"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    with pytest.raises(ExportError, match=r"open_clip_config.json: images of 224 px, resized by 'longest'"):
        load_backbone(name, str(tmp_path))
