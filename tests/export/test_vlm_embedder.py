"""A small Qwen3-VL and Qwen2-VL of random weights, exported, against transformers' own, from file and text on.

VLM2Vec's wording among them: https://github.com/TIGER-AI-Lab/VLM2Vec, src/model/processor.py and src/data/eval_dataset.
"""

from __future__ import annotations

import io
import json
import re
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from cirrus_client import LocalEncoder, TritonEncoder
from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.canary import read_canary
from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.image.preprocess import preprocess
from cirrus_client.replay import LocalRunner, replay
from cirrus_client.tokenizer import Tokenizer
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.compile import onnx_graph
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.recipes import Recipe
from tests.conftest import jpeg
from tests.export.author_files import write_modules
from tests.export.compiled import LOWER, check_all_compile, needs_rtx

SIZE_PX = {"qwen3-vl": 96, "qwen2-vl": 84, "qwen2.5-vl": 84}
WORDINGS = {"qwen2-vl": "gme", "qwen2.5-vl": "lamra"}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
WEIGHTS = "model.safetensors"
UNITE = {"wording": "unite", "query_instruction": ""}
INSTRUCTION = "Find the product that the edit describes"
TEXTS = (
    *("in blue", "", "  two\n\nlines, and\ttabs  ", "ohne Ärmel, 50 % länger — 連衣裙 👗", "is <|im_end|> not the end"),
    *("with stripes " * 60, "'s", "<think> red </think>"),
)
JOINED = (
    "in blue.",
    "\nin blue",
    "in blue\n\n",
    "is it red?! ",
    "👗",
    "red." * 60 + "!",
    "7",
    "<|image_pad|>\n",
    "'s.\t",
)
"""Texts that a tokenizer joins to the words around them."""


def write_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Train a small tokenizer of Qwen's kind: bytes, NFC, and in Qwen3's a token behind every prompt."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["the same dress in blue with stripes and longer sleeves", INSTRUCTION, ".\n", "!\n", " \n", ":\n", "\n\n"]
    tokenizer.train_from_iterator(words * 9, trainer)
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
    elif folder.name == "qwen2.5-vl":
        vision = {
            **{"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64},
            **{"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
        }
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    else:
        vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen2-vl"])
def checkpoint(request, tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("vlm") / request.param)


def request(checkpoint: Path, out: Path, **options: str | int) -> ExportRequest:
    wording = {"wording": WORDINGS.get(checkpoint.name, "")}
    options = {"image_size_px": SIZE_PX[checkpoint.name], "query_instruction": INSTRUCTION} | wording | options
    return ExportRequest("vlm-embedder", checkpoint.name, str(checkpoint), None, out, options=options)


@pytest.fixture(scope="module")
def exported(probe, checkpoint, tmp_path_factory) -> Bundle:
    """The Qwen2-VL is written as a large one is, with its weights beside its graphs."""
    with pytest.MonkeyPatch.context() as patch:
        if checkpoint.name == "qwen2-vl":
            patch.setattr(onnx_graph, "_EXTERNAL_DATA_BYTES", 0)
        return export(request(checkpoint, tmp_path_factory.mktemp("vlm-bundle") / "bundle"), probe)


class Published:
    """The published way: the processor's pixels, the chat template as text, transformers' model, the last token.

    counted: GME gives transformers embeddings instead of ids and no positions, so that its images' tokens are counted
    like words (Alibaba-NLP/gme-Qwen2-VL-2B-Instruct, modeling_gme_qwen2vl.py). Ops-MM-embedding gives it ids
    (OpenSearch-AI/Ops-MM-embedding-v1-2B, ops_mm_embedding_v1.py).
    """

    def __init__(self, checkpoint: Path, *, counted: bool | None = None) -> None:
        third = checkpoint.name == "qwen3-vl"
        self.counted = not third if counted is None else counted
        generation = Qwen3VLForConditionalGeneration if third else Qwen2VLForConditionalGeneration
        self.model = generation.from_pretrained(checkpoint, dtype=torch.float32).model.eval()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
        levels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if third else {}
        self.images = Qwen2VLImageProcessor(patch_size=16 if third else 14, merge_size=2, do_resize=False, **levels)
        self.size_px = SIZE_PX[checkpoint.name]
        self.query = f"{INSTRUCTION}." if third else INSTRUCTION
        self.target = "Represent the user's input." if third else "You are a helpful assistant."
        self.end = "<|im_end|>\n<|im_start|>assistant\n" + ("" if third else "<|endoftext|>")

    def __call__(self, image: bytes | None, text: str, instruction: str) -> np.ndarray:
        before = f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n"
        behind: list[int] = []
        if image is not None:
            before, behind = f"{before}<|vision_start|>", self.ids("<|vision_end|>")
        end_ids = self.tokenizer(self.end)["input_ids"]
        text_ids = self.ids(text, split_special_tokens=True)[: 128 - len(end_ids)]
        return self.read(self.ids(before), image, [*behind, *text_ids, *end_ids], counted=self.counted)

    def ids(self, text: str, **options: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    @torch.no_grad()
    def read(self, before: list[int], image: bytes | None, behind: list[int], *, counted: bool = False) -> np.ndarray:
        """Return the last token's state. counted: positions are those of words, for an image too."""
        shown, of_image = [], {}
        if image is not None:
            picture = Image.open(io.BytesIO(image)).convert("RGB")
            square = picture.resize((self.size_px, self.size_px), Image.Resampling.BICUBIC)
            of_image = dict(self.images(images=[square], return_tensors="pt"))
            shown = [self.model.config.image_token_id] * (int(of_image["image_grid_thw"].prod()) // 4)
        ids = torch.tensor([[*before, *shown, *behind]])
        types = (ids == self.model.config.image_token_id).int()
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1) if counted else None
        read = self.model(input_ids=ids, mm_token_type_ids=types, position_ids=positions, use_cache=False, **of_image)
        return torch.nn.functional.normalize(read.last_hidden_state[:, -1], dim=-1).numpy()[0]

    def unite(self, image: bytes | None, text: str, what: str) -> np.ndarray:
        """Return the state of UNITE's message. what: how it names what is above."""
        before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        seen = [] if image is None else self.ids("<|vision_end|>")
        words = self.ids(f"{text}\nSummary above {what} in one word:", split_special_tokens=True)
        before += "" if image is None else "<|vision_start|>"
        return self.read(self.ids(before), image, [*seen, *words, *self.ids(self.end)], counted=True)

    def vlm2vec(self, image: bytes | None, words: str, *, text_length: int = 128, counted: bool = True) -> np.ndarray:
        """Return the state of VLM2Vec's message.

        words: all but the image. text_length: how many tokens are kept behind the colon.
        """
        ids = self.ids(words, split_special_tokens=True)
        kept = len(self.ids(words[: words.find(":") + 1])) + text_length
        if len(ids) > kept:
            ids = [*ids[: kept - 1], *self.ids("\n")]
        return self.read([], image, ids, counted=counted)


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
    assert exported.spec.instructions == {
        "encode_query": published.query,
        "encode_text_query": published.query,
        "encode_target": published.target,
    }


@pytest.mark.export
def test_its_canary_is_passed_here_and_its_language_model_is_shown_images(exported) -> None:
    """A text alone brings the language model an image that is not there."""
    canary = read_canary(exported)
    replay(canary, exported.spec, LocalRunner(LocalEncoder(exported))).check("here")
    assert (canary.tensors["image_mask"] > 0).all()
    np.testing.assert_allclose(canary.tensors["image_tokens"], canary.outputs["vision_encoder"]["image_tokens"])


def of_graphs(recipe: Recipe, pixels: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and targets of what is exported, before it is."""
    graphs = {graph.name: graph.module for graph in recipe.graphs()}
    tokens, model = graphs["vision_encoder"](pixels), graphs["language_model"]
    return (
        model(tokens, *graphs["query_prompt"](tokens), token_ids),
        model(tokens, *graphs["target_prompt"](tokens)),
    )


@pytest.mark.parametrize("checkpoint", ["qwen2-vl"], indirect=True)
def test_the_same_words_are_read_with_each_models_own_positions(checkpoint, tmp_path) -> None:
    spaces, targets = set(), []
    for wording, counted in (("gme", True), ("ops-mm-embedding", False)):
        published = Published(checkpoint, counted=counted)
        recipe = build_recipe(request(checkpoint, tmp_path / "out", wording=wording))
        texts = TEXTS[: len(IMAGES)]
        token_ids = torch.from_numpy(
            Tokenizer(recipe.backbone.write_tokenizer(tmp_path, recipe.prompt), tmp_path)(texts)
        )
        pixels = torch.from_numpy(np.stack([preprocess(image, recipe.backbone.preprocess) for image in IMAGES]))
        with torch.no_grad():
            query, target = of_graphs(recipe, pixels, token_ids)
            originals = recipe.query(pixels, token_ids), recipe.target(pixels)
        asked = zip(IMAGES, texts, strict=True)
        expected = np.stack([published(image, text, published.query) for image, text in asked])
        targets.append(np.stack([published(image, "", published.target) for image in IMAGES]))
        for theirs, ours, original in zip((expected, targets[-1]), (query, target), originals, strict=True):
            assert cosine_min(theirs, ours.numpy()) > 0.99999
            assert cosine_min(theirs, original.numpy()) > 0.99999
        spaces.add(recipe.pooling())
    assert cosine_min(*targets) < 0.9999  # the positions matter
    assert len(spaces) == 2
    (tmp_path / "qwen2-vl").mkdir()
    with pytest.raises(ExportError, match="say --option wording=ops-mm-embedding, gme, lamra, unite, vlm2vec, or FILE"):
        build_recipe(request(tmp_path / "qwen2-vl", tmp_path / "out", wording=""))  # before the folder is read


@pytest.mark.parametrize("checkpoint", ["qwen2-vl"], indirect=True)
def test_unites_texts_alone_end_in_other_words(checkpoint, tmp_path) -> None:
    """UNITE gives transformers embeddings and no positions (friedrichor/UNITE, inference/batch_inference_demo.py)."""
    published, recipe = Published(checkpoint), build_recipe(request(checkpoint, tmp_path / "out", **UNITE))
    texts = ["in blue", "is <|im_end|> not the end", "連衣裙 👗", "in blue.", "in blue\n\n", "7", "'s.\t"]
    images = [IMAGES[place % len(IMAGES)] for place in range(len(texts))]
    token_ids = torch.from_numpy(Tokenizer(recipe.backbone.write_tokenizer(tmp_path, recipe.prompt), tmp_path)(texts))
    pixels = torch.from_numpy(np.stack([preprocess(image, recipe.backbone.preprocess) for image in images]))
    graphs = {graph.name: graph.module for graph in recipe.graphs()}
    with torch.no_grad():
        query, target = of_graphs(recipe, pixels, token_ids)
        *without_image, alone_ids = graphs["text_query_prompt"](token_ids)
        alone = graphs["language_model"](*without_image, alone_ids)
        originals = recipe.query(pixels, token_ids), recipe.target(pixels), recipe.text_query(token_ids)
    expected = [
        np.stack([published.unite(image, text, what) for image, text in zip(seen, said, strict=True)])
        for seen, said, what in (
            (images, texts, "sentence and image"),
            (images, [""] * len(texts), "image"),
            ([None] * len(texts), texts, "sentence"),
        )
    ]
    for theirs, ours, original in zip(expected, (query, target, alone), originals, strict=True):
        assert cosine_min(theirs, ours.numpy()) > 0.99999
        assert cosine_min(theirs, original.numpy()) > 0.99999


@pytest.mark.parametrize("checkpoint", ["qwen2-vl"], indirect=True)
def test_gmes_folder_is_read_as_it_is_on_the_hub(checkpoint, tmp_path) -> None:
    """Saved by transformers 4.51: keys without a language model's name, no head of words, sizes beside each other."""
    folder = tmp_path / "hub" / "qwen2-vl"
    folder.mkdir(parents=True)
    state = {
        key.removeprefix("model.").removeprefix("language_model."): value
        for file in checkpoint.glob("*.safetensors")
        for key, value in load_file(file).items()
        if not key.startswith("lm_head")
    }
    save_file({key if key.startswith("visual.") else f"model.{key}": state[key] for key in state}, folder / WEIGHTS)
    config = json.loads((checkpoint / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    (folder / "config.json").write_text(
        json.dumps(
            config
            | {key: value for key, value in text.items() if key != "model_type"}
            | {"architectures": ["GmeQwen2VL"], "rope_theta": rope["rope_theta"]}
            | {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": rope["mrope_section"]}}
            | {"min_image_tokens": 256, "max_image_tokens": 1280, "max_length": 1800}
            | {
                "auto_map": {
                    "AutoConfig": "modeling_gme_qwen2vl.GmeQwen2VLConfig",
                    "AutoModel": "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct--modeling_gme_qwen2vl.GmeQwen2VL",
                }
            }
        )
    )
    (folder / "tokenizer.json").symlink_to(checkpoint / "tokenizer.json")
    pixels = torch.randn(2, 3, SIZE_PX["qwen2-vl"], SIZE_PX["qwen2-vl"])
    with torch.no_grad():
        theirs, ours = (build_recipe(request(path, tmp_path / "out")).target(pixels) for path in (checkpoint, folder))
    torch.testing.assert_close(ours, theirs)


def of_sentence_transformers(checkpoint: Path, folder: Path) -> Path:
    """Return a folder with a checkpoint's files and sentence-transformers' modules."""
    (folder / "1_Pooling").mkdir(parents=True)
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    write_modules(folder, ("", "models.Transformer"), ("1_Pooling", "models.Pooling"), ("2_Normalize", "Normalize"))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    return folder


def test_a_folder_of_sentence_transformers_must_pool_the_last_token(checkpoint, tmp_path) -> None:
    folder = of_sentence_transformers(checkpoint, tmp_path / checkpoint.name)
    build_recipe(request(folder, tmp_path / "out"))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    with pytest.raises(CheckpointError, match=r"go through models\.Pooling \(1_Pooling\)"):
        build_recipe(request(folder, tmp_path / "out"))


@pytest.mark.parametrize("checkpoint", ["qwen3-vl"], indirect=True)
def test_prompts_of_sentence_transformers_that_are_not_exported_are_warned_of(checkpoint, tmp_path, caplog) -> None:
    """Qwen3-VL-Embedding's folder has its instruction as the default prompt."""
    folder = of_sentence_transformers(checkpoint, tmp_path / checkpoint.name)
    settings = folder / "config_sentence_transformers.json"
    usual = {"prompts": {"default": "Represent the user's input."}, "default_prompt_name": "default"}
    settings.write_text(json.dumps(usual))
    build_recipe(request(folder, tmp_path / "out", query_instruction=""))
    assert "sentence-transformers" not in caplog.text
    settings.write_text(json.dumps({"prompts": {"query": "Find the dress.", "document": ""}}))
    build_recipe(request(folder, tmp_path / "out"))  # the user says what queries are read with
    assert "sentence-transformers" not in caplog.text
    build_recipe(request(folder, tmp_path / "out", query_instruction=""))
    assert "queries with 'Find the dress.', and it is exported with \"Represent the user's input.\"" in caplog.text
    assert "documents" not in caplog.text


def test_attention_that_a_configuration_chooses_is_exported_with_its_mask(checkpoint, tmp_path) -> None:
    """transformers' two implementations take different masks. Its fourth release wrote a note beside the choice."""
    folder = tmp_path / checkpoint.name
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text()) | {"attn_implementation": "eager"}
    config["vision_config"] |= {"_attn_implementation_autoset": True}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    recipe = build_recipe(request(folder, tmp_path / "out"))
    assert recipe.backbone.language.config._attn_implementation == "eager"
    side_px = SIZE_PX[checkpoint.name]
    pixels, token_ids = torch.randn(2, 3, side_px, side_px), torch.tensor([[6, 7, 8, -1], [9, 10, 11, 12]])
    with torch.no_grad():
        query, target = of_graphs(recipe, pixels, token_ids)
        originals = recipe.query(pixels, token_ids), recipe.target(pixels)
    for original, ours in zip(originals, (query, target), strict=True):
        assert cosine_min(original.numpy(), ours.numpy()) > 0.99999


@pytest.fixture(scope="module")
def worded_otherwise(probe, tmp_path_factory) -> tuple[Path, Bundle]:
    """A Qwen2-VL, and its bundle in VLM2Vec's wording."""
    base = tmp_path_factory.mktemp("vlm2vec")
    checkpoint = write_checkpoint(base / "qwen2-vl")
    return checkpoint, export(request(checkpoint, base / "bundle", wording="vlm2vec", query_instruction=""), probe)


@pytest.mark.export
def test_vlm2vecs_messages_are_embedded_as_published(worded_otherwise) -> None:
    checkpoint, bundle = worded_otherwise
    published, encoder = Published(checkpoint), LocalEncoder(bundle)
    composed = "\nGiven an image, find a similar everyday image with the described changes:"
    alone, target = "Find me an everyday image that matches the given caption:", "\nRepresent the given image.\n"
    assert len(published.ids(".\n")) == 1
    texts = [*TEXTS, *JOINED]
    images = [IMAGES[place % len(IMAGES)] for place in range(len(texts))]
    queries = encoder.encode_queries(images, texts)
    pairs = list(zip(images, texts, strict=True))
    expected = np.stack([published.vlm2vec(image, f"{composed} {text}\n") for image, text in pairs])
    assert cosine_min(expected, queries) > 0.99999
    worded = [text for text in texts if text.strip()]
    expected = np.stack([published.vlm2vec(None, f"{alone} {text}\n") for text in worded])
    assert cosine_min(expected, encoder.encode_queries([None] * len(worded), worded)) > 0.99999
    expected = np.stack([published.vlm2vec(image, target) for image in IMAGES])
    assert cosine_min(expected, encoder.encode_targets(IMAGES)) > 0.99999
    in_rows = np.stack([published.vlm2vec(image, target, counted=False) for image in IMAGES])
    assert cosine_min(expected, in_rows) < 0.9999  # the positions matter


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


@pytest.mark.export
@pytest.mark.parametrize("checkpoint", ["qwen2-vl"], indirect=True)
def test_large_weights_of_16_bits_are_stored_so(exported, worded_otherwise) -> None:
    _, small = worded_otherwise
    file = exported.graph_file("language_model")
    stored = [
        tensor for tensor in onnx.load(file, load_external_data=False).graph.initializer if prod(tensor.dims) >= 1024
    ]
    assert {tensor.data_type for tensor in stored} == {onnx.TensorProto.BFLOAT16}
    assert file.with_name(f"{file.name}.data").stat().st_size < 0.6 * small.graph_file("language_model").stat().st_size


@needs_rtx
@pytest.mark.export
@pytest.mark.slow
def test_its_graphs_compile(exported, tmp_path) -> None:
    check_all_compile(exported, Precision.FP32, tmp_path)


@needs_rtx
@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["qwen3-vl"], indirect=True)
@pytest.mark.parametrize("precision", LOWER)
def test_its_graphs_compile_in_a_lower_precision(exported, precision, tmp_path) -> None:
    check_all_compile(exported, precision, tmp_path)


@needs_rtx
@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, *LOWER])
def test_a_prompt_that_begins_with_the_image_compiles(worded_otherwise, precision, tmp_path) -> None:
    _, bundle = worded_otherwise
    check_all_compile(bundle, precision, tmp_path)


def test_a_users_wording_is_read_from_a_file(checkpoint, tmp_path) -> None:
    """A query has words before its image, a gallery has none, and a message may end with the text."""
    file, published = tmp_path / "mine.json", Published(checkpoint)
    words = {"query": "Seen:{image} and {text}", "text": "one {text}", "target": "{image}, and {instruction}"}
    file.write_text(json.dumps(words | {"target_instruction": "no more"}))
    recipe = build_recipe(request(checkpoint, tmp_path / "out", wording=str(file), query_instruction=""))
    assert "message '{image}, and no more'" in recipe.pooling()
    graphs = {graph.name: graph.module for graph in recipe.graphs()}
    texts = ["in blue", " ", "with stripes " * 60]
    token_ids = torch.from_numpy(Tokenizer(recipe.backbone.write_tokenizer(tmp_path, recipe.prompt), tmp_path)(texts))
    images, end = IMAGES[: len(texts)], published.tokenizer("")["input_ids"]
    pixels = torch.from_numpy(np.stack([preprocess(image, recipe.backbone.preprocess) for image in images]))

    def expected(before: str, image: bytes | None, behind: str, text: str) -> np.ndarray:
        ids = [*published.ids(behind), *published.ids(text)[: 128 - len(end)], *end]
        return published.read(published.ids(before), image, ids, counted=True)

    with torch.no_grad():
        tokens, model = graphs["vision_encoder"](pixels), graphs["language_model"]
        queries = model(tokens, *graphs["query_prompt"](tokens), token_ids).numpy()
        targets = model(tokens, *graphs["target_prompt"](tokens)).numpy()
        alone = model(*graphs["text_query_prompt"](token_ids), token_ids).numpy()
        originals = recipe.query(pixels, token_ids), recipe.target(pixels), recipe.text_query(token_ids)
    spaced = [f" {text}" if text.strip() else " " for text in texts]
    pairs = list(zip(images, spaced, strict=True))
    published_queries = np.stack([expected("Seen:", image, " and", text) for image, text in pairs])
    published_targets = np.stack([expected("", image, ", and no more", "") for image in images])
    published_alone = np.stack([expected("", None, "one", text) for text in spaced])
    for theirs, original, ours in zip(
        (published_queries, published_targets, published_alone), originals, (queries, targets, alone), strict=True
    ):
        assert cosine_min(theirs, original.numpy()) > 0.99999
        assert cosine_min(theirs, ours) > 0.99999


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
    assert "image_size_px=4480: must be at most 4096" in refusal(image_size_px=4480)
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "do_normalize": True}))
    assert re.search(r"preprocessor_config.json: image_mean is \[0.1, 0.2, 0.3\], and a Qwen\d-VL's is \[0", refusal())
    (copy / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "rescale_factor": 0.00392156862}))
    assert "preprocessor_config.json: do_normalize is False, and a Qwen" in refusal()
    (copy / "preprocessor_config.json").write_text(json.dumps({"resample": 2, "do_rescale": True}))
    assert "preprocessor_config.json: resample is 2, and a Qwen" in refusal()
    (copy / "preprocessor_config.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").unlink()
    text = config["text_config"]
    dynamic = text | {"rope_parameters": text["rope_parameters"] | {"rope_type": "dynamic", "factor": 2.0}}
    (copy / "config.json").write_text(json.dumps(config | {"text_config": dynamic}))
    assert "rope_type is dynamic, and default, linear, llama3, yarn can be exported" in refusal()
    (copy / "config.json").write_text(json.dumps(config | {"image_token_id": 500}))
    assert "image_token_id is 500, and tokenizer.json has no token of this id" in refusal()
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal()
    (copy / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal()
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "qwen4_vl"}))
    assert "describes a model of type 'qwen4_vl'" in refusal()
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Evil"}}))
    assert "'auto_map' names code" in refusal()
    (copy / "config.json").write_text(json.dumps(config))
    next(copy.glob("model-*.safetensors")).unlink()
    assert f"can't be read as a {'Qwen3-VL' if third else 'Qwen2-VL'}" in refusal()
