"""A SigLIP that transformers saved is the same model here, whole, with the pixels of its own processor."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from tokenizers import Tokenizer, models
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cirrus_client.agreement import cosine_min
from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.image.preprocess import preprocess
from cirrus_client.tokenizer import TextCleaning
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.registry import load_backbone
from cirrus_export.recipes.clip import Clip

pytestmark = [pytest.mark.export, pytest.mark.slow]

NAME = "ViT-B-16-SigLIP"
"""Its sizes are the defaults of transformers' configuration."""


@pytest.fixture(scope="module")
def model() -> SiglipModel:
    torch.manual_seed(0)
    made = SiglipModel(SiglipConfig(text_config={"bos_token_id": 1, "eos_token_id": 1}, vision_config={})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(folder)
    SiglipImageProcessorPil().save_pretrained(folder)
    vocabulary = {"</s>": 1, "a": 2, "<unk>": 0}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    return folder


def backbone_of(folder: Path):
    """Load it; its own tokenizer is found beside it."""
    return load_backbone(NAME, str(folder))


@torch.no_grad()
def test_a_siglip_of_transformers_embeds_as_it_does_there(model, folder, tmp_path) -> None:
    backbone = backbone_of(folder)
    assert backbone.write_tokenizer(tmp_path, Prompt()).cleaning is TextCleaning.SIGLIP
    noise = np.random.default_rng(0).integers(0, 255, (97, 301, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    pixels = preprocess(file.getvalue(), Clip.preprocess(backbone.preprocess))
    published = SiglipImageProcessorPil()(images=[Image.fromarray(noise)], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels, published, atol=1e-5)
    images = torch.from_numpy(np.stack([pixels, pixels[:, ::-1].copy()]))
    ids = torch.randint(2, 32000, (3, 64))
    ids[0, 7:] = 1
    for ours, theirs in (
        (backbone.embed_image(images), model.get_image_features(pixel_values=images)),
        (backbone.embed_text(ids), model.get_text_features(input_ids=ids)),
    ):
        theirs = getattr(theirs, "pooler_output", theirs)
        assert cosine_min(ours.numpy(), theirs.numpy()) > 0.99999
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_it_needs_its_architectures_name_and_its_own_heads(folder, tmp_path) -> None:
    with pytest.raises(ExportError, match="name it, like --backbone ViT-B-16-SigLIP2"):
        load_backbone("from-checkpoint", str(folder))
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_config": {"num_attention_heads": 6}}))
    with pytest.raises(
        CheckpointError, match=r"6 attention heads with gelu_pytorch_tanh and .* the architecture has 12"
    ):
        backbone_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"text_config": {"layer_norm_eps": 1e-5}}))
    with pytest.raises(CheckpointError, match=r"layer_norm_eps 1e-05, and the architecture has 12 .* and 1e-06: name"):
        backbone_of(tmp_path)
