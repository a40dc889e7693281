"""MetaCLIP 2 as transformers saves it is the same model here, in any size; files of open_clip's own are, too."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip
from safetensors.torch import save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, MetaClip2Config, MetaClip2Model

from cirrus_client.agreement import cosine_min
from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.image.preprocess import preprocess
from cirrus_client.tokenizer import Tokenizer
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.open_clip_pooled import PooledOpenClipBackbone, PooledOpenClipFamily
from cirrus_export.backbones.registry import families, load_backbone
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.pipeline import ExportRequest, build_recipe

pytestmark = pytest.mark.export

SIDE = 32
TEXTS = ["ein rotes Kleid", "  Blue &amp; GREEN stripes!  ", "", "a " * 90]


@pytest.fixture(scope="module")
def model() -> MetaClip2Model:
    """A small one, in which the end token's id is not the highest."""
    torch.manual_seed(0)
    towers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = towers | {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = MetaClip2Config(
        text_config=text, vision_config=towers | {"image_size": SIDE, "patch_size": 8}, projection_dim=24
    )
    made = MetaClip2Model(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def tokenizer() -> FastTokenizer:
    """XLM-V's form: pieces with scores, and tokens around a text."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*special, "▁", "▁a", "▁rotes", "▁Kleid", "▁Blue", "▁stripes", *"abcdefghijklmnopqrstuvwxyzGREN&;!</>"]
    made = FastTokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    made.add_special_tokens(special)
    return made


@pytest.fixture(scope="module")
def folder(model: MetaClip2Model, tokenizer: FastTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metaclip-2")
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def copy_of(folder: Path, copy: Path, **text_config: object) -> Path:
    """Return a folder with the same files and other settings of the text tower."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config | {"text_config": config["text_config"] | text_config}))
    return copy


@pytest.fixture(scope="module")
def backbone(folder: Path) -> PooledOpenClipBackbone:
    return load_backbone("from-checkpoint", str(folder))


@torch.no_grad()
def test_images_and_texts_are_embedded_as_in_transformers(model, backbone, tokenizer, tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (45, 71, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    pixels = preprocess(file.getvalue(), backbone.preprocess)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    published = processor(images=[Image.fromarray(noise)], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels, published, atol=1e-5)

    ours = Tokenizer(backbone.write_tokenizer(tmp_path, Prompt()), tmp_path)(TEXTS)
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(77)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=77)
    theirs = np.array([encoding.ids for encoding in tokenizer.encode_batch(TEXTS)])
    np.testing.assert_array_equal(ours, theirs)
    assert (ours[3] != 1).all()

    images, ids = torch.from_numpy(pixels)[None], torch.from_numpy(ours)
    for found, expected in (
        (backbone.embed_image(images), model.get_image_features(pixel_values=images)),
        (backbone.embed_text(ids), model.get_text_features(input_ids=ids, attention_mask=(ids != 1).long())),
    ):
        expected = getattr(expected, "pooler_output", expected)
        assert cosine_min(found.numpy(), expected.numpy()) > 0.999999
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_its_recipes_are_those_of_pooled_models(folder, tmp_path) -> None:
    request = ExportRequest("clip", "from-checkpoint", str(folder), None, tmp_path / "bundle")
    assert build_recipe(request).graphs()
    with pytest.raises(CheckpointError, match="describes a MetaCLIP 2, and --backbone ViT-B-32 is a CLIP"):
        load_backbone("ViT-B-32", str(folder / "model.safetensors"))


def test_an_end_token_of_no_known_tokenizer_is_refused(folder, tmp_path) -> None:
    other = copy_of(folder, tmp_path / "other", eos_token_id=5)
    with pytest.raises(CheckpointError, match=r"eos_token_id is 5; MetaCLIP 2's texts end with 2 \(facebook/xlm-v-"):
        load_backbone("from-checkpoint", str(other))
    spoilt = copy_of(folder, tmp_path / "spoilt")
    (spoilt / "tokenizer.json").unlink()
    FastTokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>")).save(str(spoilt / "tokenizer.json"))
    with pytest.raises(ExportError, match="has no token </s>"):
        load_backbone("from-checkpoint", str(spoilt))


def of_clips_classes() -> list[str]:
    """Return the pooled models of open_clip that its class `CLIP` builds: CLIPA and MetaCLIP 2."""
    configs = {name: open_clip.get_model_config(name) for name in PooledOpenClipFamily().names()}
    return [
        name
        for name, config in configs.items()
        if not config.get("custom_text")
        and {"timm_model_name", "hf_model_name"}.isdisjoint(config["vision_cfg"] | config["text_cfg"])
        and isinstance(config["vision_cfg"]["layers"], int)
    ]


@pytest.mark.parametrize("name", of_clips_classes())
@torch.no_grad()
def test_a_file_that_open_clip_saved_is_one_of_the_named_model(name: str, tmp_path: Path) -> None:
    """Its keys are a CLIP's, though the model is not of OpenAI's form. A configuration beside it says the form."""
    config = open_clip.get_model_config(name)
    small = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 8, "image_size": 28}
    config["vision_cfg"]["head_width"] = 8
    towers = [
        config[tower] | {key: size for key, size in small.items() if key in config[tower]}
        for tower in ("vision_cfg", "text_cfg")
    ]
    model = open_clip.CLIP(16, *towers).eval()
    state = StateDict(model.state_dict(), "file.pt")
    assert PooledOpenClipFamily().kind_named(name) in [family.kind_of(state) for family in families()]

    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    described = dict(zip(("vision_cfg", "text_cfg"), towers, strict=True)) | {"embed_dim": 16, "quick_gelu": False}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    words = ["<s>", "<pad>", "</s>", "[PAD]", "[CLS]", "<unk>"]
    made = FastTokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    made.save(str(tmp_path / "tokenizer.json"))
    backbone = load_backbone("from-checkpoint", str(tmp_path))
    assert (backbone.preprocess.size_px, backbone.context_length) == (28, towers[1]["context_length"])
    images, ids = torch.randn(2, 3, 28, 28), torch.randint(3, 8, (2, backbone.context_length))
    torch.testing.assert_close(backbone.embed_image(images), model.encode_image(images))
    torch.testing.assert_close(backbone.embed_text(ids), model.encode_text(ids))
