"""BGE-VL from a folder that transformers saved, against transformers' own classes: from file and text to a ranking."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_export.gate.probe import default_probe
from cirrus_export.pipeline import ExportRequest, export
from tests.export.compiled import check_all_compile, needs_rtx
from tests.export.test_hugging_face_clip import clip_model

from open_clip.tokenizer import SimpleTokenizer  # isort: skip  (behind cirrus_export, which lets torchvision load)
from transformers import CLIPTokenizer  # isort: skip
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # isort: skip

pytestmark = pytest.mark.export

TEXTS = (
    "Make the background dark",
    "  two\n\tlines \u00a0 of white   space ",
    "caf\u00e9 cafe\u0301 &amp; &lt;b&gt; \u00e2\u20ac\u2122s",
    "\u039f\u0394\u039f\u03a3 \u0130stanbul STRASSE \u00df \ufb01",
    "\u7ea2\u8272\u7684\u88d9\u5b50, \U0001f457!!! it's 2026's best",
    "x",
    "word " * 60,
)


def image_file(number: int) -> bytes:
    """A picture of an odd size, mode and format."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    width, height = rng.integers(20, 220, 2).tolist()
    mode = ("RGB", "P", "L", "CMYK", "RGBA", "LA", "1")[number % 7]
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, {"CMYK": "JPEG", "RGB": "WEBP", "P": "GIF"}.get(mode, "PNG"))
    return file.getvalue()


class Released:
    """`encode_image`, `encode_text` and `encode_multimodal` on CLIPModel: the parts are added as they are."""

    def __init__(self, folder: Path) -> None:
        self.model = clip_model("quick_gelu")
        self.model.save_pretrained(folder)
        own = SimpleTokenizer()
        names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
        vocabulary = {names.get(word, word): place for word, place in own.encoder.items()}
        merges = sorted(own.bpe_ranks, key=own.bpe_ranks.__getitem__)
        self.tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    @torch.no_grad()
    def image(self, files: list[bytes]) -> Tensor:
        images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)

    @torch.no_grad()
    def text(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        return self.model.text_projection(self.model.text_model(**tokens).pooler_output)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Released, Path]:
    folder = tmp_path_factory.mktemp("bge-vl")
    return Released(folder), folder


@pytest.fixture(scope="module")
def bge_vl(released, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("exported") / "bge-vl"
    request = ExportRequest("bge-vl", "from-checkpoint", str(released[1]), None, out)
    return export(request, default_probe(queries=4, gallery=16))


def test_queries_targets_and_rankings_are_those_of_the_released_class(bge_vl, released) -> None:
    original, _ = released
    encoder = LocalEncoder(bge_vl)
    gallery = [image_file(number) for number in range(70)]
    references = gallery[: len(TEXTS)]
    theirs = original.image(gallery)
    texts = original.text(list(TEXTS))
    targets = encoder.encode_targets(gallery)
    expected = {
        "image and text": (F.normalize(theirs[: len(TEXTS)] + texts, dim=-1), references, TEXTS),
        "text": (F.normalize(texts, dim=-1), [None] * len(TEXTS), TEXTS),
        "image": (F.normalize(theirs[: len(TEXTS)], dim=-1), references, [None] * len(TEXTS)),
    }
    wanted = F.normalize(theirs, dim=-1).numpy()
    assert (targets * wanted).sum(axis=1).min() >= 0.99999
    for name, (query, images, words) in expected.items():
        found = encoder.encode_queries(images, words)
        assert (found * query.numpy()).sum(axis=1).min() >= 0.99999, name
        ours, best = (np.argsort(-scores)[:, :50] for scores in (found @ targets.T, query.numpy() @ wanted.T))
        assert all(set(row) == set(other) for row, other in zip(ours, best, strict=True)), name


def test_the_longer_embedding_counts_more(bge_vl, released) -> None:
    """The parts are not normalised before they are added."""
    original, _ = released
    file = image_file(0)
    image, text = original.image([file]), original.text([TEXTS[0]])
    normalised = F.normalize(F.normalize(image, dim=-1) + F.normalize(text, dim=-1), dim=-1).numpy()
    (query,) = LocalEncoder(bge_vl).encode_queries([file], [TEXTS[0]])
    assert query @ normalised[0] < 0.9999


@needs_rtx
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_every_graph_compiles(precision: Precision, bge_vl: Bundle, tmp_path: Path) -> None:
    check_all_compile(bge_vl, precision, tmp_path)
