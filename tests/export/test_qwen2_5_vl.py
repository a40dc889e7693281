"""A small Qwen2.5-VL of random weights in LamRA's wording, exported, against transformers' own from file and text on.

LamRA-Ret: arXiv 2412.01720; https://github.com/Code-kunkun/LamRA, demo.py, dataset/datasets_circo.py and
dataset/datasets_flickr.py.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from cirrus_client import LocalEncoder
from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.errors import ExportError
from cirrus_export.heads.qwen2_5_vl import Qwen25VlTower
from cirrus_export.pipeline import build_recipe, export
from tests.export.compiled import check_all_compile, needs_rtx
from tests.export.test_vlm_embedder import IMAGES, JOINED, SIZE_PX, request, write_checkpoint

pytestmark = pytest.mark.export
SEARCH = "I'm looking for a similar everyday image with the described changes."
CAPTION = "Find me an everyday image that matches the given caption."
LONGEST = 99  # LamRA cuts no text
TEXTS = (
    *("in blue", "ohne Ärmel, 50 % länger — 連衣裙 👗"),
    *(text for text in JOINED if "<|" not in text and len(text) <= LONGEST),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("lamra") / "qwen2.5-vl")


@pytest.fixture(scope="module")
def bundle(checkpoint, probe, tmp_path_factory) -> Bundle:
    return export(request(checkpoint, tmp_path_factory.mktemp("lamra-bundle") / "bundle", query_instruction=""), probe)


class LamRA:
    """The published way: a whole conversation, read at the token before its answer."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).model.eval()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
        self.images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, do_resize=False)
        self.answer = len(self.tokenizer)
        self.tokenizer.add_tokens(["<emb>"])

    @torch.no_grad()
    def __call__(self, image: bytes | None, said: str, size_px: int = SIZE_PX["qwen2.5-vl"]) -> np.ndarray:
        shown, seen = "", {}
        if image is not None:
            picture = Image.open(io.BytesIO(image)).convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC)
            seen = dict(self.images(images=[picture], return_tensors="pt"))
            pads = "<|image_pad|>" * (int(seen["image_grid_thw"].prod()) // 4)
            shown = f"<|vision_start|>{pads}<|vision_end|>"
        ids = self.tokenizer(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{shown}{said}<|im_end|>\n"
            "<|im_start|>assistant\n<emb>.<|im_end|>\n<|im_start|>assistant\n",
            add_special_tokens=False,
            return_tensors="pt",
        )["input_ids"]
        answer = int((ids == self.answer).int().argmax())
        known = ids.where(ids != self.answer, 0)
        types = (ids == self.model.config.image_token_id).int()
        hidden = self.model(input_ids=known, mm_token_type_ids=types, use_cache=False, **seen).last_hidden_state
        return torch.nn.functional.normalize(hidden[0, answer - 1], dim=0).numpy()


def test_a_composed_query_and_a_gallery_image_are_embedded_as_lamra_does(checkpoint, bundle) -> None:
    published, encoder = LamRA(checkpoint), LocalEncoder(bundle)
    images = [IMAGES[place % len(IMAGES)] for place in range(len(TEXTS))]
    asked = [f"{SEARCH} {text}\nSummarize above image and sentence in one word: " for text in TEXTS]
    expected = np.stack([published(image, said) for image, said in zip(images, asked, strict=True)])
    assert cosine_min(expected, encoder.encode_queries(images, TEXTS)) > 0.99999
    expected = np.stack([published(image, "\nSummarize above image in one word: ") for image in IMAGES])
    assert cosine_min(expected, encoder.encode_targets(IMAGES)) > 0.99999


@pytest.mark.parametrize("size_px", [28, 56, 84, 140])
def test_windows_end_where_the_image_does(checkpoint, size_px: int) -> None:
    """A window has two tokens a side here, so that an image of 3 or 5 ends within one."""
    visual = LamRA(checkpoint).model.visual
    patches = torch.randn(2, (size_px // 14) ** 2, 3 * 14 * 14)
    tower = Qwen25VlTower(visual, size_px)
    twice = patches.unflatten(2, (3, 1, 14, 14)).expand(-1, -1, -1, 2, -1, -1).flatten(0, 1).flatten(1)
    sizes = torch.tensor([[1, size_px // 14, size_px // 14]] * 2)
    with torch.no_grad():
        theirs = visual(twice, grid_thw=sizes).pooler_output
        found = tower(_pixels(patches, size_px))
    torch.testing.assert_close(found.flatten(0, 1), theirs, atol=1e-5, rtol=1e-5)


def _pixels(patches: torch.Tensor, size_px: int) -> torch.Tensor:
    """Return the pixels [B, 3, S, S] that are cut into these patches [B, P, 3 * 14 * 14]."""
    tokens = size_px // 28
    cut = patches.unflatten(1, (tokens, tokens, 2, 2)).unflatten(-1, (3, 14, 14))
    return cut.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(patches), 3, size_px, size_px)


def test_a_text_alone_has_lamras_other_words_behind_it(checkpoint, bundle) -> None:
    published, encoder = LamRA(checkpoint), LocalEncoder(bundle)
    said = [f"{CAPTION} {text}\nSummarize above sentence in one word: " for text in TEXTS]
    expected = np.stack([published(None, words) for words in said])
    alone = encoder.encode_queries([None] * len(TEXTS), TEXTS)
    assert cosine_min(expected, alone) > 0.99999
    assert cosine_min(published(None, said[0].replace("above s", "above image and s"))[None], alone[:1]) < 0.9999


def test_its_wording_must_be_named(checkpoint, tmp_path) -> None:
    with pytest.raises(ExportError, match="say --option wording=lamra, vlm2vec, or FILE"):
        build_recipe(request(checkpoint, tmp_path / "out", wording=""))


@needs_rtx
@pytest.mark.slow
def test_its_graphs_compile(bundle, tmp_path) -> None:
    check_all_compile(bundle, Precision.FP32, tmp_path)
