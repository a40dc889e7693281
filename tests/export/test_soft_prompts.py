"""CIR-LVLM's soft prompts on published vision-language models: small LLaVAs and Qwen-VLs of random weights."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, normalize

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from cirrus_client import LocalEncoder
from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.image.preprocess import preprocess
from cirrus_client.tokenizer import Tokenizer
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.recipes import recipe_named
from cirrus_export.recipes.recognition import read_head_of
from tests.export import test_llava, test_vlm_embedder
from tests.export.compiled import LOWER, check_all_compile, needs_rtx
from tests.export.test_llava import IMAGES, ODD, processor_of

POOL, LENGTH, CHOSEN, WIDTH = 7, 3, 2, 64
QUERY, TARGET = "find the image with this change", "the image"
SIDE_PX = {"llava": 28, "llava-next": 56, "qwen2-vl": 84, "qwen2.5-vl": 84}


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("pool") / "pool.safetensors"
    save_file({"prompts.keys": torch.randn(POOL, WIDTH), "prompts.values": torch.randn(POOL, LENGTH, WIDTH)}, file)
    return file


@pytest.fixture(scope="module", params=list(SIDE_PX))
def checkpoint(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("soft") / request.param
    if request.param.startswith("qwen"):
        return test_vlm_embedder.write_checkpoint(folder)
    return test_llava.write_checkpoint(folder, test_llava.llama3_tokenizer())


def request(checkpoint: Path, head: Path | str | None, out: Path, **options: str | int) -> ExportRequest:
    said: dict[str, str | int] = {"query_prompt": QUERY, "target_prompt": TARGET, "prompts_chosen": CHOSEN}
    if checkpoint.name != "llava":
        said["image_size_px"] = SIDE_PX[checkpoint.name]
    pool = None if head is None else str(head)
    return ExportRequest("cir-lvlm", checkpoint.name, str(checkpoint), pool, out, options=said | options)


@lru_cache(maxsize=1)
def transformers_model(checkpoint: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).model.eval()


@torch.no_grad()
def published(checkpoint: Path, pool: dict[str, torch.Tensor], image: bytes, prompt: str, text: str) -> np.ndarray:
    """Return the mean, weighted by place, of [image; prompt; nearest soft prompts; text] in transformers' own model.

    A text of spaces is none.
    """
    model, text = transformers_model(checkpoint), text if text.strip() else ""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    side_px, picture = SIDE_PX[checkpoint.name], Image.open(io.BytesIO(image)).convert("RGB")
    if checkpoint.name != "llava":
        picture = picture.resize((side_px, side_px), Image.Resampling.BICUBIC)
    qwen = Qwen2VLImageProcessor(patch_size=14, merge_size=2, do_resize=False)
    images = qwen if checkpoint.name.startswith("qwen") else processor_of(checkpoint)
    seen = model.get_image_features(**images(images=[picture], return_tensors="pt")).pooler_output[0]

    def words(said: str, **options: bool) -> torch.Tensor:
        ids = tokenizer(said, add_special_tokens=False, **options)["input_ids"][:128]
        return model.get_input_embeddings()(torch.tensor(ids, dtype=torch.int64))

    read = words(text, split_special_tokens=True)
    instance = seen.mean(dim=0) + (read.mean(dim=0) if len(read) else 0)
    nearest = cosine_similarity(instance[None], pool["keys"]).argsort(descending=True)[:CHOSEN]
    sequence = torch.cat([seen, words(prompt), pool["values"][nearest].flatten(0, 1), read])
    hidden = model.language_model(inputs_embeds=sequence[None], use_cache=False).last_hidden_state[0]
    weights = torch.arange(1, len(hidden) + 1)[:, None]
    return normalize((hidden * weights).sum(dim=0), dim=0).numpy()


TEXTS = [text for text in ODD if "<image>" not in text]


def pool_of(head: Path) -> dict[str, torch.Tensor]:
    state = read_head_of(recipe_named("cir-lvlm"), head)
    return {key.removeprefix("prompts."): value for key, value in state.items()}


@pytest.mark.slow
def test_soft_prompts_stand_between_a_published_models_words(checkpoint, head, tmp_path) -> None:
    recipe = build_recipe(request(checkpoint, head, tmp_path / "out"))
    pool, images = pool_of(head), [IMAGES[place % len(IMAGES)] for place in range(len(TEXTS))]
    pixels = torch.from_numpy(np.stack([preprocess(image, recipe.backbone.preprocess) for image in images]))
    spec = recipe.backbone.write_tokenizer(tmp_path, recipe.prompt)
    token_ids = torch.from_numpy(Tokenizer(spec, tmp_path)(TEXTS))
    graphs = {graph.name: graph.module for graph in recipe.graphs()}
    with torch.no_grad():
        tokens, model = graphs["vision_encoder"](pixels), graphs["language_model"]
        queries = model(tokens, graphs["query_prompt"](tokens)[0], token_ids), recipe.query(pixels, token_ids)
        targets = model(tokens, *graphs["target_prompt"](tokens)), recipe.target(pixels)
    asked = list(zip(images, TEXTS, strict=True))
    expected = np.stack([published(checkpoint, pool, image, QUERY, text) for image, text in asked])
    for found in queries:
        assert cosine_min(expected, found.numpy()) > 0.99999
    expected = np.stack([published(checkpoint, pool, image, TARGET, "") for image in images])
    for found in targets:
        assert cosine_min(expected, found.numpy()) > 0.99999


@pytest.fixture(scope="module")
def exported(probe, head, tmp_path_factory) -> Bundle:
    base = tmp_path_factory.mktemp("soft-bundle")
    checkpoint = test_llava.write_checkpoint(base / "llava", test_llava.llama3_tokenizer())
    return export(request(checkpoint, head, base / "bundle"), probe)


@pytest.mark.export
def test_the_export_answers_from_file_and_text(exported, head) -> None:
    encoder, pool = LocalEncoder(exported), pool_of(head)
    checkpoint, images = exported.root.parent / "llava", [IMAGES[place % len(IMAGES)] for place in range(len(TEXTS))]
    asked = zip(images, TEXTS, strict=True)
    expected = np.stack([published(checkpoint, pool, image, QUERY, text) for image, text in asked])
    assert cosine_min(expected, encoder.encode_queries(images, TEXTS)) > 0.99999
    expected = np.stack([published(checkpoint, pool, image, TARGET, "") for image in IMAGES])
    assert cosine_min(expected, encoder.encode_targets(IMAGES)) > 0.99999


@needs_rtx
@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, *LOWER])
def test_its_graphs_compile(exported, precision, tmp_path) -> None:
    check_all_compile(exported, precision, tmp_path)


@pytest.mark.parametrize("checkpoint", ["llava"], indirect=True)
def test_a_pool_that_does_not_fit_is_refused_by_its_reason(checkpoint, head, tmp_path) -> None:
    def refusal(pool: Path | str | None, **options: str | int) -> str:
        with pytest.raises((CheckpointError, ExportError)) as caught:
            build_recipe(request(checkpoint, pool, tmp_path / "out", **options))
        return str(caught.value)

    assert "on --backbone llava needs --head: a checkpoint file, or 'random'" in refusal(None)
    assert "say --option query_prompt=WORDS" in refusal(head, query_prompt="")
    assert "<image> stands for the image's tokens" in refusal(head, target_prompt="<image> here")
    assert "prompts_chosen=8: there are 7 soft prompts" in refusal(head, prompts_chosen=8)
    file = tmp_path / "other.safetensors"
    save_file({"prompts.keys": torch.randn(POOL, 5), "prompts.values": torch.randn(POOL, LENGTH, WIDTH)}, file)
    assert "key 'prompts.keys' has shape (7, 5), expected (7, 64)" in refusal(file)
    save_file({"prompts.keys": torch.randn(POOL, WIDTH)}, file)
    assert "key 'prompts.values' is missing" in refusal(file)
    assert build_recipe(request(checkpoint, "random", tmp_path / "out")).dim == WIDTH


def test_a_folder_of_its_own_layout_has_its_soft_prompts_in_it(head, tmp_path) -> None:
    with pytest.raises(ExportError, match="recipe cir-lvlm on --backbone lvlm has no head"):
        build_recipe(ExportRequest("cir-lvlm", "lvlm", str(tmp_path), str(head), tmp_path / "out"))
    with pytest.raises(ExportError, match="a Qwen3-VL backbone gives a vision-language model with deepstack"):
        build_recipe(ExportRequest("cir-lvlm", "qwen3-vl", str(tmp_path), str(head), tmp_path / "out"))
