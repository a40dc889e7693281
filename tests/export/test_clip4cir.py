"""CLIP4Cir on a fine-tuned ResNet, from its authors' two files, against open_clip's model and the published formula."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import CheckpointError
from cirrus_export.gate.probe import default_probe
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from tests.export.compiled import check_all_compile, needs_rtx
from tests.export.test_bge_vl import TEXTS, image_file

import open_clip  # isort: skip  (behind cirrus_export, which lets torchvision be imported)
from torchvision import transforms  # isort: skip

pytestmark = pytest.mark.export

NAME, SIDE, DIM = "tiny-resnet-quickgelu", 64, 32


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, dict[str, Tensor], Path]:
    """A ResNet CLIP, a Combiner of another shape than the released one, and the folder of both files."""
    folder = tmp_path_factory.mktemp("clip4cir")
    vision = {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": DIM, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(3)
    clip = open_clip.create_model(NAME).eval().requires_grad_(False)
    for tensor in [*clip.parameters(), *(b for n, b in clip.named_buffers() if n.endswith("running_mean"))]:
        tensor.add_(0.05 * torch.randn_like(tensor))
    shapes = {
        "text_projection_layer": (24, DIM),
        "image_projection_layer": (24, DIM),
        "combiner_layer": (40, 48),
        "output_layer": (DIM, 40),
        "dynamic_scalar.0": (40, 48),
        "dynamic_scalar.3": (1, 40),
    }
    combiner = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    combiner |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    torch.save({"epoch": 9, "CLIP": clip.state_dict()}, folder / "tuned_clip_best.pt")
    torch.save({"epoch": 9, "Combiner": combiner}, folder / "combiner.pt")
    return clip, combiner, folder


def request(folder: Path, **changes) -> ExportRequest:
    values = {
        "recipe": "clip4cir",
        "backbone": NAME,
        "pretrained": str(folder / "tuned_clip_best.pt"),
        "head": str(folder / "combiner.pt"),
        "out": folder / "bundle",
    }
    return ExportRequest(**(values | changes))


@pytest.fixture(scope="module")
def exported(files) -> Bundle:
    return export(request(files[2]), default_probe(queries=4, gallery=16))


def targetpad(image: Image.Image) -> Tensor:
    """The published transform: bars until the longer side is 1.25 times the shorter, resize, crop, RGB."""
    longer, shorter = max(image.size), min(image.size)
    if longer / shorter >= 1.25:
        horizontal, vertical = (max(int((longer / 1.25 - side) / 2), 0) for side in image.size)
        image = transforms.Pad([horizontal, vertical, horizontal, vertical])(image)
    resized = transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC)(image)
    tensor = transforms.ToTensor()(transforms.CenterCrop(SIDE)(resized).convert("RGB"))
    return transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))(tensor)


def combined(image: Tensor, text: Tensor, weights: dict[str, Tensor]) -> Tensor:
    def layer(name: str, tensor: Tensor) -> Tensor:
        return tensor @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    pair = torch.cat([layer("text_projection_layer", text).relu(), layer("image_projection_layer", image).relu()], 1)
    gate = torch.sigmoid(layer("dynamic_scalar.3", layer("dynamic_scalar.0", pair).relu()))
    mixed = layer("output_layer", layer("combiner_layer", pair).relu())
    return F.normalize(mixed + gate * text + (1 - gate) * image, dim=1)


@torch.no_grad()
def test_queries_targets_and_rankings_are_those_of_the_published_formula(files, exported) -> None:
    clip, weights, _ = files
    gallery = [image_file(number) for number in range(63) if number % 7 != 1]  # Pillow can't pad a palette's GIF
    texts = [*TEXTS, ""]
    pixels = torch.stack([targetpad(Image.open(io.BytesIO(file))) for file in gallery])
    images, words = clip.encode_image(pixels), clip.encode_text(open_clip.tokenize(texts))
    encoder = LocalEncoder(exported)
    targets, wanted = encoder.encode_targets(gallery), F.normalize(images, dim=1).numpy()
    assert (targets * wanted).sum(axis=1).min() >= 0.99999
    count = len(texts)
    for found, query in (
        (encoder.encode_queries(gallery[:count], texts), combined(images[:count], words, weights)),
        (encoder.encode_queries([None] * (count - 1), texts[:-1]), F.normalize(words[:-1], dim=1)),
    ):
        assert (found * query.numpy()).sum(axis=1).min() >= 0.99999
        ours, best = (np.argsort(-scores)[:, :50] for scores in (found @ targets.T, query.numpy() @ wanted.T))
        assert all(set(row) == set(other) for row, other in zip(ours, best, strict=True))


def test_a_head_for_another_clip_is_told_by_its_width(files, tmp_path) -> None:
    _, combiner, folder = files
    torch.save({"Combiner": combiner | {"text_projection_layer.weight": torch.zeros(24, 640)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"embeddings of width 640, .*'s width is 32; .* a head for RN50x4"):
        build_recipe(request(folder, head=str(tmp_path / "other.pt")))


def test_a_missing_and_a_surplus_key_are_both_named(files, tmp_path) -> None:
    _, combiner, folder = files
    renamed = dict(combiner)
    renamed["dynamic_scalar.4.bias"] = renamed.pop("dynamic_scalar.3.bias")
    torch.save({"Combiner": renamed}, tmp_path / "renamed.pt")
    with pytest.raises(CheckpointError, match=r"'dynamic_scalar.3.bias' is missing .*'dynamic_scalar.4.bias' is not"):
        build_recipe(request(folder, head=str(tmp_path / "renamed.pt")))


@needs_rtx
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_every_graph_compiles(precision: Precision, exported: Bundle, tmp_path: Path) -> None:
    check_all_compile(exported, precision, tmp_path)
