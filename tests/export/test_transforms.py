"""Every recipe names the transform of its authors' evaluation, and docs/images.md lists it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cirrus_client.image.preprocess import PreprocessSpec, Transparency, preprocess
from cirrus_export.recipes.registry import recipe_named, recipes

CLIPS = PreprocessSpec(size_px=224)
PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text().split("## Transforms")[1]
ROWS = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (\w+) \| (\w+) \| (\w+) \| [^|]+ \|$", PAGE, re.MULTILINE)


def test_the_page_lists_the_transform_of_every_recipe() -> None:
    listed = {name: tuple(transform) for name, *transform in ROWS}
    declared = {}
    for name, recipe in recipes().items():
        spec = recipe.preprocess(CLIPS)
        declared[name] = (spec.pad.value, spec.convert_rgb, spec.crop.value, spec.transparency.value)
    assert listed == declared


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "CMYK"])
@pytest.mark.slow
def test_lincir_prepares_images_as_hugging_faces_processor_does(mode: str) -> None:
    """`build_text_encoder` of navervision/lincir, `models.py`, makes it with these arguments.

    The transformers of that time dropped transparency; today's lays it on white.
    """
    processor = CLIPImageProcessorPil(
        crop_size={"height": 224, "width": 224},
        do_convert_rgb=True,
        image_mean=list(CLIPS.mean),
        image_std=list(CLIPS.std),
        resample=3,
        size={"shortest_edge": 224},
    )
    spec = recipe_named("lincir").preprocess(CLIPS)
    rng = np.random.default_rng(0)
    for width, height in rng.integers(150, 500, (24, 2)).tolist():
        image = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        image = image.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        file = io.BytesIO()
        image.save(file, "TIFF")
        theirs = processor(Image.open(file), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(preprocess(file.getvalue(), spec), theirs, atol=1e-5)


def test_half_of_the_images_with_an_odd_margin_are_a_pixel_off_with_the_other_crop() -> None:
    floor = recipe_named("lincir").preprocess(CLIPS)
    rounded = recipe_named("retrieval-dpo").preprocess(CLIPS)
    differing = []
    for width in range(224, 240):
        file = io.BytesIO()
        Image.fromarray(np.arange(224 * width, dtype=np.uint32).astype(np.uint8).reshape(224, width)).save(file, "PNG")
        differing.append((preprocess(file.getvalue(), floor) != preprocess(file.getvalue(), rounded)).any())
    assert [width for width, differs in zip(range(224, 240), differing, strict=True) if differs] == [227, 231, 235, 239]


def test_a_transparent_sketch_has_lines_for_union_sketch_and_none_for_the_others() -> None:
    sketch = Image.new("RGBA", (240, 240))
    sketch.paste((0, 0, 0, 255), (100, 20, 110, 220))
    file = io.BytesIO()
    sketch.save(file, "PNG")
    for name, recipe in recipes().items():
        spec = recipe.preprocess(CLIPS)
        seen = len(np.unique(preprocess(file.getvalue(), spec)[0])) > 1
        assert seen == (spec.transparency is Transparency.WHITE) == (name == "union-sketch"), name
