"""A CLIP that transformers saved is the same model here, with the activation that its configuration says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from cirrus_client.errors import CheckpointError, ExportError
from cirrus_export.backbones.family import BackboneOptions
from cirrus_export.backbones.open_clip import OpenClipBackbone
from cirrus_export.backbones.registry import find_backbone, load_backbone
from cirrus_export.checkpoints.sentence_transformers import model_folder
from tests.export.author_files import write_modules

from transformers import CLIPConfig, CLIPModel  # isort: skip  (behind cirrus_export, which lets torchvision be imported)
import open_clip
from open_clip.tokenizer import SimpleTokenizer

pytestmark = pytest.mark.export

NAME = "small-hf-clip"
HIDDEN, HEADS = 64, 4


def clip_model(activation: str, **vision: int) -> CLIPModel:
    tower = {
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "hidden_act": activation,
    }
    text = tower | {"vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406}
    vision = tower | {"image_size": 32, "patch_size": 8} | vision
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPModel, Path]:
    """A CLIP of transformers and the folder that it saved."""
    model = clip_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module", autouse=True)
def _architecture(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same sizes as a model of open_clip."""
    vision = {"image_size": 32, "patch_size": 8, "width": HIDDEN, "layers": 2, "head_width": 16, "mlp_ratio": 2}
    text = {"width": HIDDEN, "heads": HEADS, "layers": 2, "mlp_ratio": 2}
    config = tmp_path_factory.mktemp("configs") / f"{NAME}.json"
    config.write_text(json.dumps({"embed_dim": 48, "vision_cfg": vision, "text_cfg": text}))
    quick = config.with_name(f"{NAME}-quickgelu.json")
    quick.write_text(json.dumps({"embed_dim": 48, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    open_clip.add_model_config(quick)


@torch.no_grad()
def assert_same_embeddings(backbone: OpenClipBackbone, model: CLIPModel) -> None:
    torch.manual_seed(1)
    pixels = torch.randn(4, 3, 32, 32)
    token_ids = torch.full((4, 77), 49407)
    padded = torch.zeros(4, 77, dtype=torch.int64)
    for row, length in enumerate((0, 3, 20, 75)):
        text = [49406, *torch.randint(1, 40000, (length,)).tolist(), 49407]
        token_ids[row, : len(text)] = padded[row, : len(text)] = torch.tensor(text)
    for ours, theirs in (
        (backbone.embed_image(pixels), model.get_image_features(pixel_values=pixels)),
        (backbone.embed_text(padded), model.get_text_features(input_ids=token_ids)),
    ):
        theirs = getattr(theirs, "pooler_output", theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(F.cosine_similarity(ours, theirs), torch.ones(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.parametrize("backbone", ["from-checkpoint", NAME])
def test_a_clip_of_transformers_embeds_as_it_does_there(backbone: str, given: str, saved) -> None:
    model, folder = saved
    path = folder if given == "folder" else folder / "model.safetensors"
    assert_same_embeddings(load_backbone(backbone, str(path)), model)


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("0_CLIPModel", "sentence_transformers.models.CLIPModel"),  # up to its fourth release
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ],
)
def test_a_clip_of_sentence_transformers_is_found_in_its_folder(
    inside: str, kind: str, saved, tmp_path, caplog
) -> None:
    model, folder = saved
    shutil.copytree(folder, tmp_path / "clip" / inside)
    write_modules(tmp_path / "clip", (inside, kind), ("1_Normalize", "sentence_transformers.models.Normalize"))
    settings = {"prompts": {"query": "a photo of ", "document": ""}, "default_prompt_name": "query"}
    (tmp_path / "clip" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert_same_embeddings(load_backbone("from-checkpoint", str(tmp_path / "clip")), model)
    assert "puts 'a photo of ' before texts, and Cirrus does not" in caplog.text


@pytest.mark.parametrize("kind", ["Dense", "Pooling", "Router", "mine.Turned"])
def test_a_module_of_sentence_transformers_that_changes_embeddings_is_refused(kind: str, saved, tmp_path) -> None:
    _, folder = saved
    shutil.copytree(folder, tmp_path / "clip")
    write_modules(tmp_path / "clip", ("", "sentence_transformers.models.Transformer"), ("1_More", f"models.{kind}"))
    (tmp_path / "clip" / "1_More").mkdir()
    (tmp_path / "clip" / "1_More" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(CheckpointError, match=rf"go through models\.{kind} \(1_More\) behind the model"):
        load_backbone(NAME, str(tmp_path / "clip"))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ('{"0": "CLIP"}', "Input should be a valid array"),
        ('[{"path": "../clip", "type": "Transformer"}]', "'../clip' is no folder beside it"),
        ('[{"path": "", "type": "T"}, {"path": "1", "type": "Pooling"}]', "1/config.json: can't be read"),
    ],
)
def test_modules_that_cannot_be_read_are_named(modules: str, message: str, tmp_path) -> None:
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(CheckpointError, match=message):
        model_folder(tmp_path)


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({"pooling_mode": "lasttoken", "embedding_dimension": 8}, True),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True, "word_embedding_dimension": 8}, True),
        ({"pooling_mode": "mean"}, False),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, False),
        ({"pooling_mode": ["mean", "lasttoken"]}, False),
    ],
)
def test_a_pooling_is_read_by_who_pools_so_himself(config: dict[str, object], read: bool, tmp_path) -> None:
    write_modules(tmp_path, ("", "gme.MultiModalTransformer"), ("1_Pooling", "sentence_transformers.models.Pooling"))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if read:
        assert model_folder(tmp_path, pooling="lasttoken") == tmp_path
    else:
        with pytest.raises(CheckpointError, match=r"go through sentence_transformers\.models\.Pooling"):
            model_folder(tmp_path, pooling="lasttoken")


def test_a_pytorch_model_bin_is_read_as_well(saved, tmp_path: Path) -> None:
    model, folder = saved
    position_ids = {f"{tower}_model.embeddings.position_ids": torch.arange(17)[None] for tower in ("text", "vision")}
    torch.save(model.state_dict() | position_ids, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert_same_embeddings(load_backbone(NAME, str(tmp_path)), model)


def test_without_its_configuration_the_activation_is_asked_for(saved, tmp_path: Path) -> None:
    model, folder = saved
    path = tmp_path / "model.safetensors"
    path.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ExportError, match="a CLIP's file does not say whether it was trained with QuickGELU"):
        load_backbone(NAME, str(path))
    quick_gelu = model.config.text_config.hidden_act == "quick_gelu"
    assert_same_embeddings(load_backbone(NAME, str(path), options=BackboneOptions(quick_gelu=quick_gelu)), model)


def test_a_word_against_the_configuration_is_refused(saved) -> None:
    model, folder = saved
    quick_gelu = model.config.text_config.hidden_act == "quick_gelu"
    with pytest.raises(ExportError, match=r"--option quick_gelu=.* says .*, but .*config.json says"):
        load_backbone(NAME, str(folder), options=BackboneOptions(quick_gelu=not quick_gelu))
    if not quick_gelu:
        with pytest.raises(
            ExportError, match=f"--backbone {NAME}-quickgelu says QuickGELU, but .*config.json says GELU"
        ):
            load_backbone(f"{NAME}-quickgelu", str(folder))


def copied(folder: Path, out: Path, **changes: object) -> Path:
    """Copy a folder with another `config.json`."""
    out.mkdir()
    (out / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        tower, _, field = key.partition("__")
        if field:
            config[tower][field] = value
        else:
            config[tower] = value
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision_config__num_attention_heads": 2}, r"\(2, 4\) attention heads .* the architecture has \(4, 4\)"),
        ({"text_config__hidden_act": "gelu_new"}, "hidden_act"),
        ({"vision_config__layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ({"vision_config__hidden_size": 128}, r"describes towers \(128, 64\) wide"),
        ({"vision_config": "x"}, "is no configuration of a CLIP"),
        ({"model_type": "metaclip_2"}, "describes a MetaCLIP 2, and --backbone"),
    ],
)
def test_a_configuration_of_another_model_is_refused(changes, reason, saved, tmp_path: Path) -> None:
    _, folder = saved
    with pytest.raises(CheckpointError, match=reason):
        load_backbone(NAME, str(copied(folder, tmp_path / "copy", **changes)))


def test_code_that_a_configuration_names_is_left_alone(saved, tmp_path: Path) -> None:
    model, folder = saved
    changed = copied(
        folder, tmp_path / "copy", auto_map={"AutoModel": "modeling.Evil"}, model_type="evil", trust_remote_code=True
    )
    (changed / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert_same_embeddings(load_backbone(NAME, str(changed)), model)
    assert not (tmp_path / "ran").exists()


def test_missing_and_surplus_keys_have_the_files_own_names(saved, tmp_path: Path) -> None:
    _, folder = saved
    changed = copied(folder, tmp_path / "copy")
    state = load_file(folder / "model.safetensors")
    del state["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    state["visual_projection_2.weight"] = state.pop("visual_projection.weight")
    save_file(state, changed / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        load_backbone(NAME, str(changed))
    assert "'text_model.encoder.layers.1.self_attn.k_proj.bias' is missing" in str(refused.value)


def test_a_folder_without_weights_is_refused_and_not_taken_for_random_ones(tmp_path: Path) -> None:
    for backbone in (NAME, "RN50", "from-checkpoint"):
        with pytest.raises(CheckpointError, match=r"none of .*model.safetensors.* is in it"):
            find_backbone(backbone, str(tmp_path)).load()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json: names no files of weights beside it"):
        load_backbone(NAME, str(tmp_path))


def test_open_clips_configuration_beside_its_file_says_the_activation(tmp_path: Path) -> None:
    clip = load_backbone(NAME, "random").clip
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    for quick_gelu in (True, False):
        model = {"quick_gelu": True} if quick_gelu else {}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
        assert ("QuickGELU" in str(load_backbone(NAME, str(tmp_path)).clip)) == quick_gelu


def test_attention_heads_of_a_file_are_as_wide_as_the_architectures_of_its_width(tmp_path: Path) -> None:
    config = open_clip.get_model_config("ViT-H-14")
    assert config["vision_cfg"]["head_width"] == 80
    small = {
        "vision_cfg": config["vision_cfg"] | {"layers": 1},
        "text_cfg": config["text_cfg"] | {"layers": 1, "width": 64, "heads": 1},
    }
    clip = open_clip.CLIP(**config | small)
    torch.save(clip.state_dict(), tmp_path / "h.pt")
    options = BackboneOptions(quick_gelu=False)
    again = load_backbone("from-checkpoint", str(tmp_path / "h.pt"), options=options).clip
    assert again.visual.transformer.resblocks[0].attn.num_heads == 16
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(pixels), clip.eval().encode_image(pixels))


def test_patches_need_not_fill_an_image(tmp_path: Path) -> None:
    """The configuration says how large an image is; the weights only how many patches it has."""
    clip_model("gelu", image_size=30).save_pretrained(tmp_path)
    assert load_backbone("from-checkpoint", str(tmp_path)).image_size_px == 30
    architecture = open_clip.get_model_config(NAME)
    architecture["vision_cfg"] |= {"image_size": 24}
    config = tmp_path / "small-24.json"
    config.write_text(json.dumps(architecture))
    open_clip.add_model_config(config)
    with pytest.raises(CheckpointError, match="images of 30 px, and the architecture's have 24"):
        load_backbone("small-24", str(tmp_path))


def with_vocabulary(folder: Path, out: Path, words: dict[str, int], **added: bool) -> Path:
    """Copy a folder, with a `tokenizer.json` as transformers saves it. added: tokens, and whether they are special."""
    out = copied(folder, out)
    tokens = [{"content": token, "special": special} for token, special in added.items()]
    (out / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": tokens}))
    return out


def test_a_vocabulary_that_is_not_openais_is_refused(saved, tmp_path: Path) -> None:
    _, folder = saved
    words = {word: number for word, number in SimpleTokenizer().encoder.items() if not word.startswith("<start_of")}
    load_backbone(NAME, str(with_vocabulary(folder, tmp_path / "own", words, unk=True)))
    exchanged = words | {"red</w>": words["dress</w>"], "dress</w>": words["red</w>"]}
    with pytest.raises(CheckpointError, match=r"tokenizer.json: 'dress</w>' has the id 736, and in .* 2595: Cirrus"):
        load_backbone(NAME, str(with_vocabulary(folder, tmp_path / "exchanged", exchanged)))
    with pytest.raises(CheckpointError, match="'garment' was added to CLIP's vocabulary: Cirrus tokenizes"):
        load_backbone(NAME, str(with_vocabulary(folder, tmp_path / "added", words, garment=False)))
    older = copied(folder, tmp_path / "older")
    (older / "vocab.json").write_text(json.dumps(exchanged))
    with pytest.raises(CheckpointError, match=r"vocab.json: 'dress</w>' has the id 736"):
        load_backbone("from-checkpoint", str(older))
    few = load_file(folder / "model.safetensors")
    few["text_model.embeddings.token_embedding.weight"] = torch.zeros(1000, HIDDEN)
    save_file(few, older / "model.safetensors")
    with pytest.raises(CheckpointError, match="has embeddings of 1,000 words, and CLIP's vocabulary has 49,408"):
        load_backbone("from-checkpoint", str(older))


def small_architecture(**fields: dict[str, object]) -> dict[str, object]:
    """Return a CLIP in open_clip's terms. Its heads are not those of open_clip's models of its width."""
    vision = {"image_size": 30, "patch_size": 7, "width": HIDDEN, "layers": 2, "head_width": 16}
    text = {"width": HIDDEN, "heads": 2, "layers": 1, "norm_kwargs": {"eps": 1e-2}}
    parts = {"vision_cfg": vision, "text_cfg": text}
    return {"embed_dim": 48, **{part: known | fields.get(part, {}) for part, known in parts.items()}}


@torch.no_grad()
def test_open_clips_configuration_beside_its_file_says_what_weights_do_not_show(tmp_path: Path) -> None:
    """A CLIP that was trained with SigLIP's loss has a bias of its scores, which no embedding has."""
    architecture = small_architecture()
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**architecture, init_logit_bias=-10.0).eval()
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": architecture | {"init_logit_bias": -10.0}}))
    ours = load_backbone("from-checkpoint", str(tmp_path))
    assert ours.image_size_px == 30
    pixels, ids = torch.randn(3, 3, 30, 30), torch.randint(1, 49407, (3, 77))
    torch.testing.assert_close(ours.embed_image(pixels), theirs.encode_image(pixels))
    torch.testing.assert_close(ours.embed_text(ids), theirs.encode_text(ids))


@pytest.mark.parametrize(
    "fields",
    [
        {"text_cfg": {"no_causal_mask": True}},
        {"text_cfg": {"pool_type": "last"}},
        {"vision_cfg": {"pool_type": "avg"}},
    ],
)
@torch.no_grad()
def test_a_configuration_of_another_form_is_built_as_it_says(fields, tmp_path: Path) -> None:
    theirs = open_clip.CLIP(**small_architecture(**fields)).eval()
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": small_architecture(**fields)}))
    ours = load_backbone("from-checkpoint", str(tmp_path))
    pixels, ids = torch.randn(3, 3, 30, 30), torch.randint(1, 49407, (3, 77))
    torch.testing.assert_close(ours.embed_image(pixels), theirs.encode_image(pixels))
    torch.testing.assert_close(ours.embed_text(ids), theirs.encode_text(ids))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"vision_cfg": {"head_widht": 16}}, "is no CLIP of open_clip: .*'head_widht'"),
        ({"vision_cfg": {"head_widht": 16, "pool_type": "avg"}}, "is no model of open_clip: .*'head_widht'"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:timm/tiny"}}, "timm_model_name is hf-hub:timm/tiny, .* fetched"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "its text tower is transformers' roberta-base"),
    ],
)
def test_a_configuration_of_no_model_or_of_one_to_be_fetched_is_refused(fields, reason: str, tmp_path: Path) -> None:
    save_file(open_clip.CLIP(**small_architecture()).state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": small_architecture(**fields)}))
    with pytest.raises((CheckpointError, ExportError), match=f"open_clip_config.json: (its model_cfg )?{reason}"):
        load_backbone("from-checkpoint", str(tmp_path))


@pytest.mark.parametrize("pool_type", ["tok", "avg"])
def test_a_configuration_beside_an_architectures_file_may_not_deny_it(pool_type: str, tmp_path: Path) -> None:
    """With "avg" no token stands for the image, so that the model gives one embedding per image alone."""
    architecture = open_clip.get_model_config(NAME)
    architecture["vision_cfg"] |= {"pool_type": pool_type}
    (tmp_path / f"small-{pool_type}.json").write_text(json.dumps(architecture))
    open_clip.add_model_config(tmp_path / f"small-{pool_type}.json")
    save_file(open_clip.CLIP(**architecture).state_dict(), tmp_path / "open_clip_model.safetensors")
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": architecture}))
    load_backbone(f"small-{pool_type}", str(tmp_path))
    architecture["text_cfg"]["heads"] = 2
    config.write_text(json.dumps({"model_cfg": architecture}))
    with pytest.raises(CheckpointError, match=r"text_cfg.heads is 2, and the architecture's is 4: name another"):
        load_backbone(f"small-{pool_type}", str(tmp_path))
