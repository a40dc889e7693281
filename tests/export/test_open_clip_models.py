"""Every tag of open_clip has its trainers' preprocessing and activation; models of another form are exported pooled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Siglip2Tokenizer

from cirrus_client.bundle import Bundle, GraphSpec
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import ExportError
from cirrus_client.image.preprocess import Interpolation, Pad
from cirrus_client.tokenizer import TextCleaning, Tokenizer, TokenizerSpec
from cirrus_client.triton.encoder import TritonEncoder
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.family import BackboneOptions, Weights
from cirrus_export.backbones.hub_tokenizer import find_hub_tokenizer
from cirrus_export.backbones.open_clip import OpenClipFamily
from cirrus_export.backbones.open_clip_models import uses_quick_gelu, warn_if_a_file_could_be_several
from cirrus_export.backbones.registry import find_backbone, load_backbone
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.draft import NOT_MEASURED, ContractDraft
from cirrus_export.gate.probe import default_probe
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.repository import Flavour
from tests.export.author_files import authors_file

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip
from open_clip import pretrained
from open_clip.tokenizer import HFTokenizer

pytestmark = pytest.mark.export

MODEL = "tiny-SigLIP2"
HUB = "timm/tiny-SigLIP2"
CONTEXT = 16
TEXTS = ["a red dress with stripes", "Blue shirts, dotted!", "make it longer and green", "the same in black"]


@pytest.mark.parametrize(("name", "tag"), open_clip.list_pretrained())
def test_a_tags_images_and_activation_are_its_trainers(name: str, tag: str) -> None:
    theirs = open_clip.get_pretrained_cfg(name, tag)
    ours = find_backbone(name, tag).preprocess()
    assert ours is not None
    assert (ours.mean, ours.std) == (tuple(theirs["mean"]), tuple(theirs["std"]))
    assert ours.interpolation is Interpolation(theirs["interpolation"])
    assert ours.pad is {"shortest": Pad.NONE, "squash": Pad.STRETCH}[theirs["resize_mode"]]
    config = open_clip.get_model_config(name)
    assert ours.size_px == config["vision_cfg"]["image_size"]
    if config.get("quick_gelu") and not theirs.get("quick_gelu"):
        with pytest.raises(ExportError, match="its activation function is unknown"):
            uses_quick_gelu(name, config, Weights(tag=tag), from_openai=False)
    else:
        found = uses_quick_gelu(name, config, Weights(tag=tag), from_openai=False)
        assert found == bool(theirs.get("quick_gelu"))


def test_a_tag_sets_the_activation_of_the_model_that_is_built(tmp_path: Path) -> None:
    plain = OpenClipFamily().load("ViT-B-32", Weights(), None)
    assert "QuickGELU" not in str(plain.clip)
    save_file(plain.clip.state_dict(), tmp_path / "weights.safetensors")
    quick = load_backbone("ViT-B-32", f"metaclip_400m={tmp_path / 'weights.safetensors'}")
    assert "QuickGELU" in str(quick.clip)


@pytest.fixture(scope="module")
def b32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT-B-32 as a file that does not say which tag's it is."""
    file = tmp_path_factory.mktemp("b32") / "weights.safetensors"
    save_file(load_backbone("ViT-B-32", "random").clip.state_dict(), file)
    return file


@pytest.mark.parametrize("backbone", ["ViT-B-32", "from-checkpoint"])
def test_the_activation_of_a_clips_file_is_asked_for_and_never_guessed(backbone: str, b32: Path, caplog) -> None:
    caplog.set_level("INFO")
    with pytest.raises(ExportError, match=f"checkpoint {b32}: a CLIP's file does not say .* --option quick_gelu=true"):
        load_backbone(backbone, str(b32))
    for quick_gelu in (True, False):
        options = BackboneOptions(quick_gelu=quick_gelu)
        clip = load_backbone(backbone, str(b32), options=options).clip
        assert ("QuickGELU" in str(clip)) == quick_gelu
        word = "QuickGELU" if quick_gelu else "GELU"
        assert f"is built with {word}, as --option quick_gelu={str(quick_gelu).lower()} says" in caplog.text


@pytest.mark.parametrize("backbone", ["ViT-B-32", "from-checkpoint"])
def test_a_trainers_module_may_hold_the_clip_under_any_name(backbone: str, b32: Path, tmp_path: Path) -> None:
    plain = load_file(b32)
    torch.save({"epoch": 1, "state_dict": {f"clip.{key}": value for key, value in plain.items()}}, tmp_path / "clip.pt")
    clip = load_backbone(backbone, str(tmp_path / "clip.pt"), options=BackboneOptions(quick_gelu=True)).clip
    assert torch.equal(clip.visual.proj, plain["visual.proj"])


@pytest.mark.parametrize("name", sorted({name for name, _ in open_clip.list_pretrained()}))
def test_a_file_is_asked_about_where_weights_of_its_shape_differ_in_activation(name: str) -> None:
    siblings = {name, f"{name}-quickgelu"}
    published = {
        bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu"))
        for model, tag in open_clip.list_pretrained()
        if model in siblings
    }
    config = open_clip.get_model_config(name)
    weights = Weights(state=StateDict({}, "file.pt"))
    if config.get("quick_gelu") or published == {False}:
        assert uses_quick_gelu(name, config, weights, from_openai=False) == bool(config.get("quick_gelu"))
    else:
        with pytest.raises(ExportError, match=r"name the tag whose file it is: --pretrained TAG=file\.pt"):
            uses_quick_gelu(name, config, weights, from_openai=False)


@pytest.mark.parametrize(
    ("name", "pretrained", "both"),
    [
        (
            "ViT-B-32",
            "metaclip_400m",
            "--pretrained metaclip_400m says QuickGELU, but --option quick_gelu=false says GELU",
        ),
        ("ViT-B-32-quickgelu", "FILE", "--backbone ViT-B-32-quickgelu says QuickGELU, but --option quick_gelu=false"),
    ],
)
def test_two_contradicting_words_on_the_activation_are_refused(
    name: str, pretrained: str, both: str, b32: Path
) -> None:
    pretrained = str(b32) if pretrained == "FILE" else pretrained
    with pytest.raises(ExportError, match=both):
        load_backbone(name, pretrained, options=BackboneOptions(quick_gelu=False))


@pytest.mark.parametrize(("quick_gelu", "component"), [(True, "quick_gelu"), (False, None)])
def test_an_activation_that_only_the_user_says_is_part_of_the_space(quick_gelu, component, tmp_path: Path) -> None:
    options = {"quick_gelu": str(quick_gelu)}
    request = ExportRequest("clip", "RN50", "random", None, tmp_path / "out", options=options)
    recipe = build_recipe(request)
    draft = ContractDraft(request, recipe, tmp_path)
    assert draft.space.components.get("activation") == component
    (tmp_path / "graphs").mkdir()
    graphs = {}
    for graph in recipe.graphs():
        graphs[graph.name] = GraphSpec(file=f"graphs/{graph.name}.onnx", inputs=graph.inputs, outputs=graph.outputs)
        (tmp_path / graphs[graph.name].file).touch()
    assert draft.contract(graphs, NOT_MEASURED).options == {"text_weight": 0.5, "quick_gelu": quick_gelu}


@pytest.mark.parametrize(
    ("said", "quick_gelu", "component"), [({}, True, None), ({"quick_gelu": "false"}, False, "gelu")]
)
def test_a_clip_beside_a_head_is_openais_unless_the_user_says_gelu(said, quick_gelu, component, tmp_path: Path) -> None:
    head = authors_file(tmp_path, "transagg")
    request = ExportRequest("transagg", "from-checkpoint", None, str(head), tmp_path / "out", options=said)
    recipe = build_recipe(request)
    assert ("QuickGELU" in str(recipe.backbone.clip)) == quick_gelu
    assert ContractDraft(request, recipe, tmp_path).space.components.get("activation") == component


@pytest.mark.parametrize("backbone", ["ViT-H-14", "from-checkpoint"])
def test_a_clip_beside_a_head_that_is_wider_than_openais_is_asked_about(backbone: str) -> None:
    wide = {"visual.class_embedding": torch.ones(1280), "token_embedding.weight": torch.ones(2, 1024)}
    with pytest.raises(ExportError, match=r"checkpoint head\.pt: a CLIP's file does not say .* DataComp's\)$"):
        load_backbone(backbone, None, StateDict(wide, "head.pt"))


def test_only_a_clip_has_an_activation_to_choose(tmp_path: Path) -> None:
    options = {"quick_gelu": "true"}
    request = ExportRequest("transagg", "blip-base-coco", "random", "random", tmp_path / "out", options=options)
    with pytest.raises(ExportError, match="--option quick_gelu: a BLIP backbone has no such option"):
        build_recipe(request)


def test_an_activation_that_is_neither_true_nor_false_is_refused(tmp_path: Path) -> None:
    request = ExportRequest("clip", "RN50", "random", None, tmp_path / "out", options={"quick_gelu": "maybe"})
    with pytest.raises(ExportError, match=r"--option 'quick_gelu': .* found 'maybe'"):
        build_recipe(request)


def test_a_file_whose_images_could_be_prepared_as_several_tags_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    weights = Weights(state=StateDict({}, "file.pt"))
    warn_if_a_file_could_be_several("ViT-L-14", open_clip.get_model_config("ViT-L-14"), weights)
    assert "--pretrained TAG=file.pt" in caplog.text


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer with Gemma's special tokens, as transformers saves it."""
    fast = FastTokenizer(models.BPE(unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    fast.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    fast.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False))
    fast.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="right"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A tiny model of open_clip with SigLIP 2's properties, listed with a tag as SigLIP 2's are, and its weights."""
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
    text = {
        "context_length": CONTEXT,
        "vocab_size": 200,
        "hf_tokenizer_name": HUB,
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 64,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    }
    folder = tmp_path_factory.mktemp("siglip")
    config = folder / f"{MODEL}.json"
    config.write_text(json.dumps({"embed_dim": 64, "custom_text": True, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    pretrained._PRETRAINED[MODEL] = {"webli": pretrained._slpcfg(hf_hub=f"{HUB}/")}
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def request(weights: Path, out: Path, tokenizer: Path | None, recipe: str = "clip") -> ExportRequest:
    return ExportRequest(recipe, MODEL, f"webli={weights}", None, out, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def exported(siglip: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "siglip"
    return export(request(siglip, out, tokenizer_folder / "tokenizer.json"), default_probe(queries=8, gallery=16))


def test_a_siglip_is_exported_gated_and_answers(exported: Bundle, siglip: Path, tokenizer_folder: Path, photos) -> None:
    encoder = LocalEncoder(exported)
    images = sorted(photos.iterdir())[:3]
    model = open_clip.create_model(MODEL)
    open_clip.load_checkpoint(model, str(siglip))
    assert exported.spec.preprocess.pad is Pad.STRETCH
    assert exported.spec.preprocess.mean == (0.5, 0.5, 0.5)
    transform = open_clip.image_transform(160, False, (0.5,) * 3, (0.5,) * 3, "squash", "bicubic")
    tokens = HFTokenizer(str(tokenizer_folder), context_length=CONTEXT, clean="canonicalize")(["In RED, dotted!"])
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([transform(Image.open(path)) for path in images]), normalize=True)
        text = model.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(encoder.encode_targets(images), image.numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries([None], ["In RED, dotted!"]), text.numpy(), atol=1e-5)
    both = torch.nn.functional.normalize(image[:1] + text, dim=-1).numpy()
    np.testing.assert_allclose(encoder.encode_queries(images[:1], ["In RED, dotted!"]), both, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries(images[:1], [""]), image[:1].numpy(), atol=1e-5)


@pytest.mark.triton
def test_a_siglip_is_served(exported: Bundle, photos) -> None:
    image, text = sorted(photos.iterdir())[0], "In RED, dotted!"
    http, grpc, metrics = free_ports(3)
    repository = exported.root / "triton" / Flavour.PYTHON
    with (
        TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics) as server,
        TritonEncoder(server.grpc_url) as served,
    ):
        local = LocalEncoder(exported)
        np.testing.assert_allclose(served.encode_targets([image]), local.encode_targets([image]), atol=1e-5)
        for query in (([image], [text]), ([None], [text]), ([image], [None])):
            np.testing.assert_allclose(served.encode_queries(*query), local.encode_queries(*query), atol=1e-5)


def test_the_pooling_of_a_space_says_how_the_model_pools(exported: Bundle) -> None:
    pooling = exported.spec.space.components["pooling"]
    assert pooling == "open_clip encode_image, timm_pool map, timm_proj none, l2-normalised"


def test_a_recipe_that_needs_tokens_refuses_it_before_anything_is_read(siglip: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="recipe searle needs a text tower that takes word embeddings, and a pooled"):
        build_recipe(ExportRequest("searle", MODEL, "webli", "random", tmp_path / "out"))


def test_a_tokenizer_that_can_not_be_fetched_is_named(
    siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match=rf"https://huggingface.co/{HUB}/resolve/main/tokenizer.json .* --tokenizer"):
        build_recipe(request(siglip, tmp_path / "out", tokenizer=None))


@pytest.mark.parametrize("tag", ["", "webli="])
def test_the_tokenizer_in_the_folder_of_the_weights_is_taken(
    tag: str, siglip: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of the hub have both, and a machine without network the folder alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.symlink_to(siglip)
    (tmp_path / "tokenizer.json").symlink_to(tokenizer_folder / "tokenizer.json")
    pretrained = f"{tag}{weights if tag else tmp_path}"
    backbone = build_recipe(ExportRequest("clip", MODEL, pretrained, None, tmp_path / "out")).backbone
    (tmp_path / "written").mkdir()
    assert backbone.write_tokenizer(tmp_path / "written", Prompt()).cleaning is TextCleaning.CANONICALIZE


def test_another_models_tokenizer_is_refused(siglip: Path, tmp_path: Path) -> None:
    other = FastTokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ExportError, match=f"it has no token <eos>: it is not the tokenizer '{HUB}'"):
        build_recipe(request(siglip, tmp_path / "out", tokenizer=tmp_path / "tokenizer.json"))


@settings(deadline=None)
@given(st.text(max_size=60))
def test_a_hub_tokenizers_ids_are_open_clips(tokenizer_folder: Path, tmp_path_factory, text: str) -> None:
    root = tmp_path_factory.getbasetemp() / "hub"
    root.mkdir(exist_ok=True)
    settings_of_text = {"hf_tokenizer_name": HUB, "vocab_size": 200, "tokenizer_kwargs": {"clean": "canonicalize"}}
    hub = find_hub_tokenizer(MODEL, settings_of_text, tokenizer_folder / "tokenizer.json")
    tokenizer = Tokenizer(hub.write(root, context_length=CONTEXT, prompt=Prompt()), root)
    expected = HFTokenizer(str(tokenizer_folder), context_length=CONTEXT, clean="canonicalize")([text])
    np.testing.assert_array_equal(tokenizer([text]), expected.numpy())


@given(st.text(max_size=60))
def test_texts_of_a_siglip_2_of_transformers_are_cleaned_as_there(text: str) -> None:
    """open_clip repairs texts and takes punctuation away."""
    cleaned = TokenizerSpec(start_id=None, end_id=1, cleaning=TextCleaning.SIGLIP2).prompt(text)
    normalised = Siglip2Tokenizer().backend_tokenizer.normalizer.normalize_str(text)
    assert cleaned.replace(" ", "\u2581") == (normalised if text.strip() else "")


def test_texts_of_a_siglip_of_transformers_are_cleaned_as_there() -> None:
    """Its tokenizer needs a package of its own, so its `canonicalize_text` is not run here."""
    spec = TokenizerSpec(start_id=None, end_id=1, cleaning=TextCleaning.SIGLIP)
    assert spec.prompt(" Long_Sleeve\n RED, &amp; it\u2019s (\uff21)\t") == "longsleeve red amp it\u2019s \uff41"


def test_a_siglip_2_of_transformers_keeps_punctuation(tokenizer_folder: Path) -> None:
    settings_of_text = {"hf_tokenizer_name": HUB, "vocab_size": 200, "tokenizer_kwargs": {"clean": "canonicalize"}}
    file = tokenizer_folder / "tokenizer.json"
    assert find_hub_tokenizer(MODEL, settings_of_text, file, of_transformers=True).cleaning is TextCleaning.SIGLIP2
    assert find_hub_tokenizer(MODEL, settings_of_text, file).cleaning is TextCleaning.CANONICALIZE
