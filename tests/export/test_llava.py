"""Small LLaVAs of random weights, exported, against transformers' own, from file and text on.

E5-V's wording: https://github.com/kongds/E5-V, retrieval.py. VLM2Vec's, and its square images of 1344 pixels:
https://github.com/TIGER-AI-Lab/VLM2Vec, src/dataset.py of its first version.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from peft import LoraConfig, get_peft_model
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from cirrus_client import LocalEncoder
from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.errors import CheckpointError, ExportError, UnsupportedQuery
from cirrus_client.image.preprocess import normalise, preprocess
from cirrus_client.tokenizer import Tokenizer
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.recipes import Recipe
from tests.conftest import jpeg
from tests.export.compiled import LOWER, check_all_compile, needs_rtx
from tests.export.test_vlm_embedder import TEXTS

TILE_PX = 28
RESOLUTIONS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
SPECIAL = (BOS, EOT, "<|start_header_id|>", "<|end_header_id|>")
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ODD = (
    *(*TEXTS, "<image>", "a <image> of <|eot_id|><|begin_of_text|>"),
    *('"quoted"', "(red)", "7", " red", "red.", "'s", "</s>"),
)
WORDS = ["modify this image with a red dress, describe it in one word: longer sleeves, please", " \n", "\n\n", '",']


def photo(seed: int, width: int, height: int) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()


IMAGES = (photo(1, 301, 97), photo(2, 40, 333), jpeg("white", (1, 1)), photo(3, 56, 56), photo(4, 112, 112))


def llama3_tokenizer() -> tokenizers.Tokenizer:
    """Bytes, a token before every message, and no place for an image yet."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), behavior="isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 9, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def llama2_tokenizer() -> tokenizers.Tokenizer:
    """SentencePiece's pieces as transformers converts them: a space before every text, and no cut between words."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    letters = sorted({letter for words in WORDS for letter in words.replace(" ", "▁")})
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=100, initial_alphabet=letters, show_progress=False)
    learner.train_from_iterator(WORDS * 9, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    merges = [tuple(pair) for pair in learnt["merges"]]
    model = tokenizers.models.BPE(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    normalizers = tokenizers.normalizers
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def write_checkpoint(folder: Path, tokenizer: tokenizers.Tokenizer, *, text: str = "llama", **fields: Any) -> Path:
    """Write a model of the kind that the folder is named after. A Llama's image token is no special one, as E5-V's."""
    folder.mkdir()
    tokenizer.add_tokens([tokenizers.AddedToken("<image>", special=text != "llama", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(4)
    vision = {
        **{"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
        **{"num_attention_heads": 2, "image_size": TILE_PX, "patch_size": 14, "projection_dim": 16},
    }
    language = {
        **{"model_type": text, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
        **fields.pop("text_config", {}),
    }
    own: dict[str, object] = {"image_token_index": tokenizer.token_to_id("<image>")}
    if folder.name == "llava-next":
        own["image_grid_pinpoints"] = RESOLUTIONS
        config = LlavaNextConfig(vision_config=vision, text_config=language, **own | fields)
        model = LlavaNextForConditionalGeneration(config)
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=language, **own | fields))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")
    processor_of(folder).save_pretrained(folder)
    return folder


def processor_of(folder: Path) -> LlavaNextImageProcessorPil | CLIPImageProcessorPil:
    sizes = {"size": {"shortest_edge": TILE_PX}, "crop_size": {"height": TILE_PX, "width": TILE_PX}}
    if folder.name == "llava-next":
        return LlavaNextImageProcessorPil(image_grid_pinpoints=RESOLUTIONS, **sizes)
    return CLIPImageProcessorPil(**sizes)


@pytest.fixture(scope="module")
def e5v(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("e5v") / "llava-next", llama3_tokenizer())


@pytest.fixture(scope="module")
def vlm2vec(tmp_path_factory) -> Path:
    """A Mistral, whose window no message of this size fills."""
    return write_checkpoint(tmp_path_factory.mktemp("vlm2vec") / "llava-next", llama2_tokenizer(), text="mistral")


def request(checkpoint: Path, out: Path, **options: str | int) -> ExportRequest:
    return ExportRequest("vlm-embedder", checkpoint.name, str(checkpoint), None, out, options=options)


class Published:
    """The published way: transformers' processor of images, whole messages as text, its model, the last token.

    plain: the checkpoint's tokenizer without a token for images, so that a user's spelling of it is text.
    """

    def __init__(self, checkpoint: Path, plain: tokenizers.Tokenizer, *, side_px: int | None = None) -> None:
        self.next = checkpoint.name == "llava-next"
        generation = LlavaNextForConditionalGeneration if self.next else LlavaForConditionalGeneration
        self.model = generation.from_pretrained(checkpoint, dtype=torch.float32).model.eval()
        self.plain, self.images, self.side_px = plain, processor_of(checkpoint), side_px
        self.first = plain.encode("", add_special_tokens=True).ids

    def ids(self, words: str, *, special: bool = True) -> list[int]:
        self.plain.encode_special_tokens = not special
        return self.plain.encode(words, add_special_tokens=False).ids

    @torch.no_grad()
    def read(self, before: list[int], image: bytes | None, behind: list[int]) -> np.ndarray:
        shown, of_image = [], {}
        if image is not None:
            picture = Image.open(io.BytesIO(image)).convert("RGB")
            if self.side_px is not None:
                picture = picture.resize((self.side_px, self.side_px), Image.Resampling.BICUBIC)
            of_image = dict(self.images(images=[picture], return_tensors="pt"))
            features = self.model.get_image_features(**of_image).pooler_output[0]
            shown = [self.model.config.image_token_id] * len(features)
        ids = torch.tensor([[*self.first, *before, *shown, *behind]])
        read = self.model(input_ids=ids, use_cache=False, **of_image).last_hidden_state
        return torch.nn.functional.normalize(read[:, -1], dim=-1).numpy()[0]

    def e5v(self, image: bytes, words: str, *, ending: str = "") -> np.ndarray:
        """words: what the user's turn says behind the image. ending: what no length of a text cuts off."""
        header = "<|start_header_id|>{}<|end_header_id|>\n\n"
        end = self.ids(f"{EOT}{header.format('assistant')} \n")
        said = self.ids(words, special=False)
        opening = len(self.ids("Modify this image with", special=False))
        if ending and len(said) - opening > 128 - len(end):
            kept = self.ids(ending, special=False)
            said = [*said[: opening + 128 - len(end) - len(kept)], *kept]
        return self.read(self.ids(header.format("user")), image, [*said, *end])


@pytest.fixture(scope="module")
def exported(probe, e5v, tmp_path_factory) -> Bundle:
    return export(request(e5v, tmp_path_factory.mktemp("e5v-bundle") / "bundle", wording="e5-v"), probe)


def e5v_query(text: str) -> str:
    return f'Modify this image with "{text}", desribe modified image in one word:'


@pytest.mark.export
def test_e5vs_messages_are_embedded_as_published(exported, e5v) -> None:
    published, encoder = Published(e5v, llama3_tokenizer(), side_px=56), LocalEncoder(exported)
    images = [IMAGES[place % len(IMAGES)] for place in range(len(ODD))]
    queries = encoder.encode_queries(images, ODD)
    ending = '", desribe modified image in one word:'
    expected = np.stack(
        [published.e5v(image, e5v_query(text), ending=ending) for image, text in zip(images, ODD, strict=True)]
    )
    assert cosine_min(expected, queries) > 0.99999
    targets = np.stack([published.e5v(image, "\n Describe this image in one word:") for image in IMAGES])
    assert cosine_min(targets, encoder.encode_targets(IMAGES)) > 0.99999
    assert np.abs(queries @ queries.T)[np.triu_indices(len(queries), 1)].max() < 0.9999  # every text is read
    with pytest.raises(UnsupportedQuery):
        encoder.encode_queries([None], ["red"])


@needs_rtx
@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, *LOWER])
def test_its_graphs_compile(exported, precision, tmp_path) -> None:
    check_all_compile(exported, precision, tmp_path)


def of_graphs(recipe: Recipe, images: Sequence[bytes], texts: Sequence[str], root: Path) -> dict[str, np.ndarray]:
    """Return queries, targets and texts alone of what is exported, before it is, and of the torch original."""
    spec = recipe.backbone.write_tokenizer(root, recipe.prompt)
    token_ids = torch.from_numpy(Tokenizer(spec, root)(texts))
    pixels = torch.from_numpy(np.stack([preprocess(image, recipe.backbone.preprocess) for image in images]))
    graphs = {graph.name: graph.module for graph in recipe.graphs()}
    with torch.no_grad():
        tokens, model = graphs["vision_encoder"](pixels), graphs["language_model"]
        found = {
            "queries": model(tokens, *graphs["query_prompt"](tokens), token_ids),
            "targets": model(tokens, *graphs["target_prompt"](tokens)),
            "texts": model(*graphs["text_query_prompt"](token_ids), token_ids),
            "original queries": recipe.query(pixels, token_ids),
            "original targets": recipe.target(pixels),
            "original texts": recipe.text_query(token_ids),
        }
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize(
    ("side_px", "tiles"),
    [(None, 4), (112, 4), (96, 4), (28, 2), (20, 2), (37, 4)],
    ids=["not resized", "twice the tiles", "shrunk", "a tile", "smaller than a tile", "odd"],
)
@pytest.mark.slow
def test_vlm2vecs_squares_are_seen_as_published(side_px, tiles, vlm2vec, tmp_path) -> None:
    """A tokenizer that begins every text with a space; images that are resized, cut into tiles and padded."""
    size = {} if side_px is None else {"image_size_px": side_px}
    recipe = build_recipe(request(vlm2vec, tmp_path / "out", wording="vlm2vec", **size))
    published = Published(vlm2vec, llama2_tokenizer(), side_px=side_px or 56)
    assert recipe.backbone.tower.views.count == 1 + tiles
    texts = [text for text in ODD if text.strip() and len(text) < 100]
    images = [IMAGES[place % len(IMAGES)] for place in range(len(texts))]
    found = of_graphs(recipe, images, texts, tmp_path)

    def ids(words: str, text: str = "") -> list[int]:
        return [*published.ids(f"{words}{text}\n", special=False)]

    instruction = "Given an image, find a similar everyday image with the described changes: "
    alone = "Find me an everyday image that matches the given caption: "
    asked = list(zip(images, texts, strict=True))
    expected = {
        "queries": [published.read([], image, ids(f"\n{instruction}", text)) for image, text in asked],
        "targets": [published.read([], image, ids("\nRepresent the given image.")) for image in images],
        "texts": [published.read([], None, ids(alone, text)) for text in texts],
    }
    for name, values in expected.items():
        assert cosine_min(np.stack(values), found[name]) > 0.99999, name
        assert cosine_min(np.stack(values), found[f"original {name}"]) > 0.99999, name


def test_proportions_are_kept_by_the_original_as_published(vlm2vec, tmp_path) -> None:
    """Which `cirrus bench resolution` compares with squares."""
    recipe, published = (
        build_recipe(request(vlm2vec, tmp_path / "out", wording="vlm2vec")),
        Published(vlm2vec, llama2_tokenizer()),
    )
    behind = published.ids("\nRepresent the given image.\n", special=False)
    for width, height in [(301, 97), (40, 333), (1, 1), (90, 61), (61, 90), (27, 29), (500, 3)]:
        image = photo(5, width, height)
        picture = Image.open(io.BytesIO(image))
        pixels = torch.from_numpy(normalise(picture, recipe.backbone.preprocess))[None]
        with torch.no_grad():
            found = recipe.target(pixels).numpy()
        assert cosine_min(published.read([], image, behind)[None], found) > 0.99999, (width, height)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "projector_hidden_act": "relu"},
        {"vision_feature_layer": [1, -2, 0], "multimodal_projector_bias": False},
        {"text_config": {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e4}}},
    ],
    ids=["plain", "with CLS", "layers", "a scaled rotation"],
)
@pytest.mark.slow
def test_a_llava_sees_an_image_as_published(fields, tmp_path) -> None:
    """Its processor crops, so that images of any proportions are the published ones."""
    checkpoint = write_checkpoint(tmp_path / "llava", llama3_tokenizer(), text="qwen2", **fields)
    wording = tmp_path / "mine.json"
    words = {"query": "{image} and {text}{end}", "text": "one {text}{end}", "target": "seen: {image}"}
    wording.write_text(json.dumps({task: said.replace("{end}", EOT) for task, said in words.items()}))
    recipe = build_recipe(request(checkpoint, tmp_path / "out", wording=str(wording)))
    published = Published(checkpoint, llama3_tokenizer())
    texts = [text for text in ODD if text.strip() and len(text) < 100]
    images = [IMAGES[place % len(IMAGES)] for place in range(len(texts))]
    found, end = of_graphs(recipe, images, texts, tmp_path), published.ids(EOT)

    def ids(words: str) -> list[int]:
        return [*published.ids(words, special=False), *end]

    asked = list(zip(images, texts, strict=True))
    expected = {
        "queries": [published.read([], image, ids(f" and {text}")) for image, text in asked],
        "targets": [published.read(published.ids("seen: "), image, []) for image in images],
        "texts": [published.read([], None, ids(f"one {text}")) for text in texts],
    }
    for name, values in expected.items():
        assert cosine_min(np.stack(values), found[name]) > 0.99999, name
        assert cosine_min(np.stack(values), found[f"original {name}"]) > 0.99999, name


def as_in_4_41(name: str) -> str:
    """Return the name of a saved weight, or of an adapter's, in transformers 4.41."""
    inner = name.removeprefix("model.")
    if inner.startswith("language_model.layers"):
        inner = inner.replace("language_model.", "language_model.model.")
    return inner.replace("vision_tower.", "vision_tower.vision_model.")


def as_in_4_57(name: str) -> str:
    """Return the name of a saved weight in transformers 4.57."""
    inner = as_in_4_41(name).replace("language_model.model.", "language_model.").replace("language_model.lm_", "lm_")
    return inner if inner.startswith("lm_head") else f"model.{inner}"


@pytest.mark.parametrize("renamed", [as_in_4_41, as_in_4_57])
def test_e5vs_folder_is_read_as_it_is_on_the_hub(renamed, e5v, tmp_path) -> None:
    """Saved by transformers 4, with an image token behind the word embeddings."""
    folder = tmp_path / "llava-next"
    folder.mkdir()
    state = {key: value for file in e5v.glob("*.safetensors") for key, value in load_file(file).items()}
    words = llama3_tokenizer().get_vocab_size()
    for key in ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"):
        state[key] = state[key][:words]
    state["vision_tower.embeddings.position_ids"] = torch.arange(5)[None]
    save_file({renamed(key): value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    config = json.loads((e5v / "config.json").read_text())
    config["text_config"]["vocab_size"] = words
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").symlink_to(e5v / "tokenizer.json")
    (folder / "preprocessor_config.json").write_bytes((e5v / "preprocessor_config.json").read_bytes())
    pixels, ids = torch.randn(2, 3, 56, 56), torch.randint(6, 300, (2, 9))
    theirs, ours = (build_recipe(request(path, tmp_path / "out", wording="e5-v")) for path in (e5v, folder))
    with torch.no_grad():
        torch.testing.assert_close(ours.query(pixels, ids), theirs.query(pixels, ids))
    spec = ours.backbone.write_tokenizer(tmp_path, ours.prompt)
    assert Tokenizer(spec, tmp_path)(["an <image>"]).max() < words


@pytest.mark.slow
def test_an_adapter_of_an_earlier_transformers_is_merged_into_both_towers(e5v, tmp_path) -> None:
    whole = LlavaNextForConditionalGeneration.from_pretrained(e5v, dtype=torch.float32)
    torch.manual_seed(7)
    config = LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, target_modules=["q_proj", "down_proj", "fc1"])
    folder, merged = tmp_path / "llava-next", tmp_path / "merged" / "llava-next"
    adapted = get_peft_model(whole, config)
    adapted.save_pretrained(folder)
    factors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model."
    old = {prefix + as_in_4_41(key.removeprefix(prefix)): value for key, value in factors.items()}
    assert old.keys().isdisjoint(factors)
    save_file(old, folder / "adapter_model.safetensors")
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": str(e5v)}))
    adapted.merge_and_unload().save_pretrained(merged)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (merged / name).write_bytes((e5v / name).read_bytes())
    pixels = torch.randn(2, 3, 56, 56)
    recipes = [build_recipe(request(path, tmp_path / "out", wording="e5-v")) for path in (folder, merged, e5v)]
    with torch.no_grad():
        found, wanted, without = (recipe.target(pixels) for recipe in recipes)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert float((found * without).sum(dim=-1).max()) < 0.9999


def edited(**changes: object) -> Callable[[Path], None]:
    """Return a change of `config.json`, whose parts `text_config` and `vision_config` keep what is not named."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            config[name] = config.get(name, {}) | value if isinstance(value, dict) else value
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def processed(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").unlink()
        (folder / "preprocessor_config.json").write_text(json.dumps(settings | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (edited(model_type="llava"), r"config.json: describes a model of type 'llava', expected 'llava_next'"),
        (edited(auto_map={"AutoModel": "evil.Evil"}), "'auto_map' names code"),
        (edited(vision_feature_layer="two"), r"config.json: can't be read"),
        (edited(vision_feature_layer=[1, 4]), r"config.json: vision_feature_layer is \[1, 4\], and .* has 3 layers"),
        (edited(vision_feature_select_strategy="full"), "config.json: vision_feature_select_strategy is full"),
        (edited(image_grid_pinpoints=[[56, 30]]), r"image_grid_pinpoints is \[\[56, 30\]\], and .* multiples of 28"),
        (edited(image_grid_pinpoints=[[56, 56]]), r"preprocessor_config.json: image_grid_pinpoints is \[\[28, 56"),
        (
            edited(vision_config={"model_type": "siglip_vision_model"}),
            "vision_config.model_type is siglip_vision_model",
        ),
        (edited(text_config={"model_type": "gemma"}), "text_config.model_type is gemma, and llama, mistral, qwen2"),
        (
            edited(text_config={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
            "rope_type is dynamic, and default, linear, llama3, yarn",
        ),
        (
            edited(text_config={"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}),
            "text_config.layer_types is sliding_attention",
        ),
        (edited(image_token_index=777), "image_token_index is 777, and tokenizer.json has no token of this id"),
        (processed(crop_size={"height": 56, "width": 56}, size={"shortest_edge": 56}), "size is 56, and .* 28 pixels"),
        (processed(do_normalize=False), "do_normalize is False"),
        (processed(image_mean=[0.5, 0.5]), "preprocessor_config.json: its settings of images can't be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "can't be read as a LLaVA-NeXT"),
    ],
)
def test_a_folder_that_can_not_be_exported_is_refused_by_its_reason(damage, reason, e5v, tmp_path) -> None:
    folder = copied(e5v, tmp_path)
    damage(folder)
    with pytest.raises(CheckpointError, match=reason):
        build_recipe(request(folder, tmp_path / "out", wording="e5-v"))


def copied(folder: Path, into: Path) -> Path:
    copy = into / folder.name
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


def test_a_llava_that_pads_with_a_colour_and_a_window_that_is_too_short_are_refused(vlm2vec, tmp_path) -> None:
    plain = write_checkpoint(tmp_path / "llava", llama3_tokenizer())
    processed(do_pad=True)(plain)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: do_pad is True"):
        build_recipe(request(plain, tmp_path / "out", wording="e5-v"))
    folder = copied(vlm2vec, tmp_path)
    edited(text_config={"sliding_window": 160})(folder)
    with pytest.raises(ExportError, match=r"attends to the last 160 alone \(sliding_window"):
        build_recipe(request(folder, tmp_path / "out", wording="vlm2vec"))


def test_a_wording_must_be_named_and_another_generation_has_another_space(e5v, tmp_path) -> None:
    with pytest.raises(ExportError, match="say --option wording=e5-v, vlm2vec, or FILE"):
        build_recipe(request(e5v, tmp_path / "out"))
    folder = copied(e5v, tmp_path)
    edited(vision_feature_layer=1)(folder)
    with pytest.raises(ExportError, match="image_size_px=5000: must be at most 4096"):
        build_recipe(request(e5v, tmp_path / "out", wording="e5-v", image_size_px=5000))
    spaces = {build_recipe(request(path, tmp_path / "out", wording="e5-v")).pooling() for path in (e5v, folder)}
    assert len(spaces) == 2
