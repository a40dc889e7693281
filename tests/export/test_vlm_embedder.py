"""A small Qwen3-VL and Qwen2-VL of random weights, exported, against transformers' own, from file and text on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from cirrus_client import LocalEncoder, TritonEncoder
from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from tests.conftest import jpeg
from tests.export.compiled import LOWER, check_compiles, needs_rtx

SIZE_PX = {"qwen3-vl": 96, "qwen2-vl": 84}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
INSTRUCTION = "Find the product that the edit describes"
TEXTS = (
    *("in blue", "", "  two\n\nlines, and\ttabs  ", "ohne Ärmel, 50 % länger — 連衣裙 👗", "is <|im_end|> not the end"),
    *("with stripes " * 60, "'s", "<think> red </think>"),
)


def write_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Train a small tokenizer of Qwen's kind: bytes, NFC, and in Qwen3's a token behind every prompt."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the same dress in blue with stripes and longer sleeves", INSTRUCTION] * 9, trainer)
    end = SPECIAL[0]
    if folder.name == "qwen3-vl":
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def write_checkpoint(folder: Path) -> Path:
    """Write a model of the generation that the folder is named after."""
    folder.mkdir()
    tokenizer = write_tokenizer(folder)  # the model has words to spare, as Qwen's
    torch.manual_seed(4)
    text = {
        **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96},
        **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }
    ids = {
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
    }
    if folder.name == "qwen3-vl":
        vision = {
            **{"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64},
            **{"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [2, 0]},
        }
        config = Qwen3VLConfig(text_config=text | {"head_dim": 16}, vision_config=vision, **ids)
        model = Qwen3VLForConditionalGeneration(config)
    else:
        vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture(scope="module", params=list(SIZE_PX))
def checkpoint(request, tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("vlm") / request.param)


def request(checkpoint: Path, out: Path, **options: str | int) -> ExportRequest:
    options = {"image_size_px": SIZE_PX[checkpoint.name], "query_instruction": INSTRUCTION} | options
    return ExportRequest("vlm-embedder", checkpoint.name, str(checkpoint), None, out, options=options)


@pytest.fixture(scope="module")
def exported(probe, checkpoint, tmp_path_factory) -> Bundle:
    return export(request(checkpoint, tmp_path_factory.mktemp("vlm-bundle") / "bundle"), probe)


class Published:
    """The published way: the processor's pixels, the chat template as text, transformers' model, the last token."""

    def __init__(self, checkpoint: Path) -> None:
        third = checkpoint.name == "qwen3-vl"
        generation = Qwen3VLForConditionalGeneration if third else Qwen2VLForConditionalGeneration
        self.model = generation.from_pretrained(checkpoint, dtype=torch.float32).model.eval()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
        levels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if third else {}
        self.images = Qwen2VLImageProcessor(patch_size=16 if third else 14, merge_size=2, do_resize=False, **levels)
        self.size_px = SIZE_PX[checkpoint.name]
        self.query = f"{INSTRUCTION}." if third else INSTRUCTION
        self.target = "Represent the user's input." if third else "You are a helpful assistant."
        self.end = "<|im_end|>\n<|im_start|>assistant\n" + ("" if third else "<|endoftext|>")

    @torch.no_grad()
    def __call__(self, image: bytes | None, text: str, instruction: str) -> np.ndarray:
        shown, of_image = "", {}
        if image is not None:
            picture = Image.open(io.BytesIO(image)).convert("RGB")
            square = picture.resize((self.size_px, self.size_px), Image.Resampling.BICUBIC)
            of_image = dict(self.images(images=[square], return_tensors="pt"))
            count = int(of_image["image_grid_thw"].prod()) // 4
            shown = "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
        prompt = f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{shown}"
        prompt_ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        text_ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        end_ids = self.tokenizer(self.end)["input_ids"]
        ids = torch.tensor([[*prompt_ids, *text_ids[: 128 - len(end_ids)], *end_ids]])
        types = (ids == self.model.config.image_token_id).int()
        hidden = self.model(input_ids=ids, mm_token_type_ids=types, use_cache=False, **of_image).last_hidden_state
        return torch.nn.functional.normalize(hidden[:, -1], dim=-1).numpy()[0]


IMAGES = (jpeg("teal", (301, 97)), jpeg("red", (40, 333)), jpeg("white", (1, 1)), jpeg("navy", (96, 96)))


@pytest.mark.export
def test_every_message_is_embedded_as_published(exported, checkpoint) -> None:
    published, encoder = Published(checkpoint), LocalEncoder(exported)
    images = [IMAGES[place % len(IMAGES)] for place in range(len(TEXTS))]
    queries = encoder.encode_queries(images, TEXTS)
    expected = np.stack([published(image, text, published.query) for image, text in zip(images, TEXTS, strict=True)])
    assert cosine_min(expected, queries) > 0.99999
    alone = [text for text in TEXTS if text.strip()]
    expected = np.stack([published(None, text, published.query) for text in alone])
    assert cosine_min(expected, encoder.encode_queries([None] * len(alone), alone)) > 0.99999
    targets = np.stack([published(image, "", published.target) for image in IMAGES])
    assert cosine_min(targets, encoder.encode_targets(IMAGES)) > 0.99999
    assert np.abs(queries @ queries.T)[np.triu_indices(len(queries), 1)].max() < 0.9999  # every text is read


@pytest.mark.export
def test_batches_and_rows_agree(exported) -> None:
    encoder = LocalEncoder(exported)
    together = encoder.encode_queries([IMAGES[0]] * 3, ["in blue", TEXTS[5], ""])
    alone = [encoder.encode_queries([IMAGES[0]], [text])[0] for text in ("in blue", TEXTS[5], "")]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


@pytest.mark.triton
@pytest.mark.slow
def test_a_real_triton_answers_the_same(exported) -> None:
    http, grpc, metrics = free_ports(3)
    repository, local = exported.root / "triton" / "python", LocalEncoder(exported)
    with (
        TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics) as running,
        TritonEncoder(running.grpc_url) as triton,
    ):
        np.testing.assert_allclose(triton.encode_targets(IMAGES), local.encode_targets(IMAGES), atol=1e-5)
        for images in (IMAGES, [None] * len(IMAGES)):
            asked = (list(images), list(TEXTS[3:7]))
            np.testing.assert_allclose(triton.encode_queries(*asked), local.encode_queries(*asked), atol=1e-5)


@pytest.mark.export
def test_the_language_model_is_in_one_graph(exported) -> None:
    ensembles = exported.spec.ensembles.values()
    assert {ensemble.steps[-1].model for ensemble in ensembles} == {"language_model"}
    report = json.loads((exported.root / "report.json").read_text())
    assert min(stage["cosine_min"] for stage in report["stages"]) > 0.99999


@needs_rtx
@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, *LOWER])
def test_its_graphs_compile(exported, precision, tmp_path) -> None:
    for name, graph in exported.spec.graphs.items():
        check_compiles(name, exported.graph_file(name), graph, precision, tmp_path)


def test_a_matryoshka_width_is_the_first_values(checkpoint, tmp_path) -> None:
    whole, short = (build_recipe(request(checkpoint, tmp_path / "out", **options)) for options in ({}, {"dim": 16}))
    pixels = torch.randn(2, 3, SIZE_PX[checkpoint.name], SIZE_PX[checkpoint.name])
    first = torch.nn.functional.normalize(whole.target(pixels)[:, :16], dim=-1)
    torch.testing.assert_close(short.target(pixels), first)
    with pytest.raises(ExportError, match=r"dim=65: an embedding has 64 values"):
        build_recipe(request(checkpoint, tmp_path / "out", dim=65))


def test_a_folder_that_is_no_qwen_vl_is_refused_by_its_reason(checkpoint, tmp_path) -> None:
    def refusal(**options: str | int) -> str:
        with pytest.raises((CheckpointError, ExportError)) as caught:
            build_recipe(request(copy, tmp_path / "out", **options))
        return str(caught.value)

    copy, third = tmp_path / checkpoint.name, checkpoint.name == "qwen3-vl"
    copy.mkdir()
    for file in checkpoint.iterdir():
        (copy / file.name).symlink_to(file)
    assert f"image_size_px=100: must be a multiple of {32 if third else 28}" in refusal(image_size_px=100)
    (copy / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal()
    (copy / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_5_vl"}))
    assert "describes a model of type 'qwen2_5_vl'" in refusal()
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Evil"}}))
    assert "'auto_map' names code" in refusal()
    (copy / "config.json").write_text(json.dumps(config))
    next(copy.glob("model-*.safetensors")).unlink()
    assert f"can't be read as a {'Qwen3-VL' if third else 'Qwen2-VL'}" in refusal()
