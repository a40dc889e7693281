"""The published sizes of images compared with squares, on a small Qwen-VL of random weights."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from cirrus_bench.resolution import measure_resolution, original, published_pixels
from cirrus_client.errors import ExportError
from cirrus_export.gate.probe import Probe, ProbeQuery
from cirrus_export.heads.qwen_vl import patches
from cirrus_export.recipes.vlm_embedder import VlmEmbedder
from tests.export import test_llava
from tests.export.test_vlm_embedder import SIZE_PX, WORDINGS, write_checkpoint

pytestmark = pytest.mark.export


@pytest.fixture(scope="module", params=list(SIZE_PX))
def checkpoint(request, tmp_path_factory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("resolution") / request.param)
    processor(folder).save_pretrained(folder)
    return folder


def torch_original(checkpoint: Path) -> VlmEmbedder:
    return original(checkpoint.name, checkpoint, {"wording": WORDINGS.get(checkpoint.name, "")})


def processor(folder: Path) -> Qwen2VLImageProcessor:
    third = folder.name == "qwen3-vl"
    levels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if third else {}
    return Qwen2VLImageProcessor(patch_size=16 if third else 14, min_pixels=56 * 56, max_pixels=200 * 200, **levels)


def photo(seed: int, width: int, height: int) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()


def probe_of(width: int, height: int) -> Probe:
    gallery = tuple(photo(seed, width, height) for seed in range(12))
    return Probe("photos", gallery, tuple(ProbeQuery(gallery[row], "in blue", row) for row in range(4)))


def test_a_square_of_the_published_size_changes_nothing_and_another_does(checkpoint) -> None:
    side = SIZE_PX[checkpoint.name]
    recipe = torch_original(checkpoint)
    report = measure_resolution(recipe, checkpoint, probe_of(side, side), [side, 2 * side])
    published, same, larger = report.rows
    assert published.tokens == same.tokens == 9
    assert same.cosine_min > 0.99999
    assert same.top10_agreement == 1
    assert larger.tokens == 36
    assert larger.cosine_min < 0.9999
    assert f"| square of {side} px | 9 |" in report.markdown()


def test_proportions_are_kept_as_the_published_processor_keeps_them(checkpoint) -> None:
    recipe, image = torch_original(checkpoint), photo(1, 301, 97)
    pixels = torch.from_numpy(published_pixels(recipe.backbone, checkpoint)(image))[None]
    seen = processor(checkpoint)(images=[Image.open(io.BytesIO(image))], return_tensors="pt")
    values = patches(pixels, recipe.backbone.model.config.vision_config)[0]
    theirs = seen["pixel_values"].unflatten(1, (3, 2, *values.shape[-2:]))[:, :, 0]
    assert pixels.shape[2] < pixels.shape[3]
    assert (values - theirs).abs().max() < 0.05  # a resize in torchvision rounds otherwise than Pillow's
    report = measure_resolution(recipe, checkpoint, probe_of(400, 100), [SIZE_PX[checkpoint.name]])
    assert report.rows[1].cosine_min < 0.9999


def test_what_can_not_be_compared_is_refused(checkpoint, tmp_path) -> None:
    recipe, probe = torch_original(checkpoint), probe_of(96, 96)
    with pytest.raises(ExportError, match=f"--size 100: must be a multiple of {recipe.backbone.token_side_px}"):
        measure_resolution(recipe, checkpoint, probe, [100])
    with pytest.raises(ExportError, match="its image processor can't be read"):
        measure_resolution(recipe, tmp_path, replace(probe, name="other"), [recipe.backbone.token_side_px])


def test_a_llava_next_sees_published_sizes_in_tiles_and_a_llava_has_no_other(tmp_path) -> None:
    folder = test_llava.write_checkpoint(tmp_path / "llava-next", test_llava.llama3_tokenizer())
    recipe = original("llava-next", folder, {"wording": "e5-v"})
    square, tall = (measure_resolution(recipe, folder, probe_of(*size), [56]) for size in ((56, 56), (40, 130)))
    assert [row.tokens for row in square.rows] == [24, 24]
    assert square.rows[1].cosine_min > 0.99999
    assert tall.rows[0].tokens == 4 + 6 * 3  # 28 x 84 pixels, 2 x 6 tokens with a new line behind each row
    assert tall.rows[1].cosine_min < 0.9999
    wording = tmp_path / "mine.json"
    wording.write_text('{"query": "{image} {text}", "target": "{image}"}')
    plain = test_llava.write_checkpoint(tmp_path / "llava", test_llava.llama3_tokenizer())
    with pytest.raises(ExportError, match="a LLaVA sees every image in its published size"):
        measure_resolution(original("llava", plain, {"wording": str(wording)}), plain, probe_of(56, 56), [56])
