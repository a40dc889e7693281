"""CIR-LVLM at a small configuration of the same classes, and what the full one needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.canary import read_canary
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import CheckpointError
from cirrus_client.names import Flavour
from cirrus_client.replay import LocalRunner, TritonRunner, replay
from cirrus_client.tokenizer import Tokenizer
from cirrus_client.triton.encoder import TritonEncoder
from cirrus_client.triton.served_names import ServedNames
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.bert_tokenizer import write_bert_tokenizer
from cirrus_export.backbones.lvlm import LvlmBackbone, LvlmConfig, footprint, load_lvlm
from cirrus_export.checkpoints.state import fingerprint
from cirrus_export.gate.plan_fidelity import GraphValues
from cirrus_export.heads.lvlm import Pooling, PromptedLanguage, pooled, read
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.repository import write_shared_repository
from tests.export.compiled import LOWER, check_all_compile, needs_rtx

SMALL = LvlmConfig(
    vision={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    },
    language={
        "model_type": "qwen2",
        "vocab_size": 30522,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    connector_queries=8,
    connector_heads=4,
    context_length=24,
    start_id=101,
    end_id=102,
    pad_id=0,
    prompt_pool=9,
    prompt_length=3,
    prompts_chosen=2,
    query_prompt=(2000, 2001, 2002),
    target_prompt=(2003, 2004),
)
QWEN_7B = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
VIT_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(2)
    backbone = LvlmBackbone(SMALL)
    for parameter in backbone.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    state = {
        key.replace("vision_tower.", "vision.", 1) if key.startswith("vision_tower.") else key: value.contiguous()
        for key, value in backbone.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(SMALL.model_dump_json())
    write_bert_tokenizer(folder, context_length=24, prompt=Prompt())
    return folder


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "lvlm")


@pytest.fixture(scope="module")
def exported(probe, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("cir-lvlm")
    return export(request(write_checkpoint(folder / "lvlm"), folder / "bundle"), probe)


def request(checkpoint: Path, out: Path, **options: str) -> ExportRequest:
    return ExportRequest("cir-lvlm", "lvlm", str(checkpoint), None, out, options=options)


@pytest.mark.export
def test_a_small_lvlm_is_exported_passes_its_gate_and_answers(exported, probe) -> None:
    report = json.loads((exported.root / "report.json").read_text())
    assert min(stage["cosine_min"] for stage in report["stages"]) > 0.99999
    encoder = LocalEncoder(exported)
    blue, none, red = encoder.encode_queries([probe.gallery[0]] * 3, ["in blue", None, "in red with long sleeves"])
    assert abs(float(blue @ red)) < 0.99999
    assert abs(float(blue @ none)) < 0.99999


@pytest.mark.export
@pytest.mark.triton
@pytest.mark.slow
def test_a_triton_serves_it_beside_another_bundle(exported, tiny_zero_shot_bundle, probe, tmp_path) -> None:
    """Its targets have no fused graph, which a repository of several bundles would take apart."""
    write_shared_repository([exported, tiny_zero_shot_bundle], Flavour.PYTHON, tmp_path / "models")
    http, grpc, metrics = free_ports(3)
    query = (list(probe.gallery[:3]), ["in blue", None, "with long sleeves"])
    with TritonServer(tmp_path / "models", http_port=http, grpc_port=grpc, metrics_port=metrics) as server:
        for bundle in (exported, tiny_zero_shot_bundle):
            local, served = LocalEncoder(bundle), TritonEncoder(server.grpc_url, bundle=bundle.spec.name)
            np.testing.assert_allclose(served.encode_queries(*query), local.encode_queries(*query), atol=1e-5)
            np.testing.assert_allclose(served.encode_targets(query[0]), local.encode_targets(query[0]), atol=1e-5)
        runner = TritonRunner(server.grpc_url, ServedNames(exported.spec, shared=True))
        replay(read_canary(exported), exported.spec, runner).check("there")


@pytest.mark.export
@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.LAST])
def test_another_pooling_is_another_space_and_passes_its_gate(pooling, exported, checkpoint, probe, tmp_path) -> None:
    bundle = export(request(checkpoint, tmp_path / "bundle", pooling=pooling), probe)
    assert bundle.spec.space != exported.spec.space


@needs_rtx
@pytest.mark.export
@pytest.mark.parametrize("precision", [Precision.FP32, *LOWER])
def test_its_graphs_compile(exported, precision, tmp_path) -> None:
    check_all_compile(exported, precision, tmp_path)


@pytest.mark.export
def test_its_canary_is_passed_here_and_its_plans_are_compared_on_queries(exported, probe) -> None:
    """Two graphs make the language model's prompt, and a target's prompt brings a text of its own."""
    replay(read_canary(exported), exported.spec, LocalRunner(LocalEncoder(exported))).check("here")
    read = GraphValues(exported, probe).cases("language_model")[0].inputs
    texts = [query.text for query in probe.queries[: len(read["token_ids"])]]
    np.testing.assert_array_equal(read["token_ids"], Tokenizer(exported.spec.tokenizer, exported.root)(texts))
    np.testing.assert_array_equal(read["prompt_ids"][0], SMALL.query_prompt)


@pytest.mark.export
def test_queries_and_targets_share_one_language_model(exported) -> None:
    ensembles = exported.spec.ensembles.values()
    assert {ensemble.steps[-1].model for ensemble in ensembles} == {"language_model"}


def test_a_texts_padding_changes_nothing(checkpoint) -> None:
    backbone = load_lvlm(checkpoint)
    tokens = backbone(torch.randn(1, 3, 64, 64))
    token_ids = torch.zeros(1, 24, dtype=torch.int64)
    token_ids[0, :4] = torch.tensor([101, 3000, 4000, 102])
    for pooling in Pooling:
        model = PromptedLanguage(backbone.language, backbone.prompts, SMALL.pad_id, pooling)
        padded, cut = (read(model, tokens, SMALL.query_prompt, ids) for ids in (token_ids, token_ids[:, :4]))
        torch.testing.assert_close(cut, padded, atol=1e-5, rtol=0)


def test_pooling_reads_what_is_no_padding() -> None:
    hidden, seen = torch.randn(2, 5, 3), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    weighted, mean, last = (pooled(hidden, seen, pooling) for pooling in Pooling)
    torch.testing.assert_close(weighted[1], (hidden[1, 0] + 2 * hidden[1, 1]) / 3)
    torch.testing.assert_close(mean, torch.stack([hidden[0].mean(dim=0), hidden[1, :2].mean(dim=0)]))
    torch.testing.assert_close(last, torch.stack([hidden[0, 4], hidden[1, 1]]))


def test_prompts_in_words_are_tokenized_without_special_tokens(checkpoint) -> None:
    config = SMALL.model_copy(update={"target_prompt": "a photo of this"})
    (checkpoint / "config.json").write_text(config.model_dump_json())
    recipe = build_recipe(request(checkpoint, checkpoint, query_prompt="find it, changed"))
    assert "target prompt (1037, 6302, 1997, 2023)" in recipe.pooling()
    pixels, ids = torch.randn(1, 3, 64, 64), torch.tensor([[101, 3000, 102]])
    find_it_changed = (2424, 2009, 1010, 2904)
    backbone = recipe.backbone
    model = PromptedLanguage(backbone.language, backbone.prompts, SMALL.pad_id, Pooling.POSITION_WEIGHTED)
    expected = read(model, backbone(pixels), find_it_changed, ids)
    torch.testing.assert_close(recipe.query(pixels, ids), torch.nn.functional.normalize(expected, dim=-1))


def test_words_need_a_tokenizer_that_can_be_read(checkpoint) -> None:
    worded = request(checkpoint, checkpoint, target_prompt="a photo of this")
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: can't be read as a tokenizer"):
        build_recipe(worded)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        build_recipe(worded)


def test_soft_prompts_are_those_of_the_nearest_keys_best_first(checkpoint) -> None:
    pool = load_lvlm(checkpoint).prompts
    instance = pool.keys[5:6] + 0.01 * pool.keys[7:8]
    chosen = pool(instance)
    cosines = torch.nn.functional.cosine_similarity(instance, pool.keys)
    expected = cosines.argsort(descending=True)[:2]
    assert int(expected[0]) == 5
    torch.testing.assert_close(chosen, pool.values[expected].flatten(0, 1)[None])


def test_lora_factors_are_merged_and_a_lone_one_is_named(checkpoint) -> None:
    state = load_file(checkpoint / "model.safetensors")
    layer = "language.layers.1.self_attn.q_proj"
    a, b = torch.randn(2, 64), torch.randn(64, 2)
    save_file(state | {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}, checkpoint / "model.safetensors")
    merged = load_lvlm(checkpoint).language.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(merged, state[f"{layer}.weight"] + b @ a)
    save_file(state | {f"{layer}.lora_A.weight": a}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_B\.weight' is missing"):
        load_lvlm(checkpoint)


def test_weights_in_several_files_are_the_same_model(checkpoint) -> None:
    whole = fingerprint(load_lvlm(checkpoint))
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    shard_of = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(state)}
    for shard in set(shard_of.values()):
        save_file({key: value for key, value in state.items() if shard_of[key] == shard}, checkpoint / shard)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    assert fingerprint(load_lvlm(checkpoint)) == whole


def test_a_key_or_option_out_of_place_is_named(checkpoint) -> None:
    state = load_file(checkpoint / "model.safetensors")
    del state[next(key for key in state if key.startswith("vision.") and key.endswith("post_layernorm.bias"))]
    save_file(state, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"key 'vision\..*post_layernorm\.bias' is missing"):
        load_lvlm(checkpoint)
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: field 'vision': Field required"):
        load_lvlm(checkpoint)


@pytest.mark.parametrize(
    ("tower", "changes", "reason"),
    [
        ("language", {"auto_map": {"AutoModel": "evil.Evil"}}, "'auto_map' names code"),
        ("language", {"trust_remote_code": True}, "'trust_remote_code' names code"),
        ("language", {"attn_implementation": "someone/kernel"}, "'attn_implementation' names code"),
        ("vision", {"_attn_implementation": "someone/kernel"}, "'_attn_implementation' names code"),
        ("language", {"rope_parameters": {"auto_map": "evil"}}, "'auto_map' names code"),
        ("language", {"quantization_config": {"quant_method": "evil"}}, "'quantization_config' names code"),
        ("language", {"model_type": "evil"}, "model_type 'evil' is no causal language model"),
        ("language", {"model_type": "timm_backbone"}, "model_type 'timm_backbone' is no causal language model"),
        ("language", {"hidden_act": "nope"}, "no model can be built of it"),
        ("language", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "is dynamic"),
        ("vision", {"patch_size": 0}, "no model can be built of it"),
    ],
)
@pytest.mark.slow
def test_a_configuration_is_data_and_is_refused_before_a_weight_is_read(tower, changes, reason, checkpoint) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config[tower] |= changes
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "evil.py").write_text(f"open({str(checkpoint / 'ran')!r}, 'w')")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=reason):
        load_lvlm(checkpoint)
    assert not (checkpoint / "ran").exists()


def test_wrong_weights_are_refused_before_a_model_is_allocated(checkpoint, monkeypatch) -> None:
    state = load_file(checkpoint / "model.safetensors")
    save_file(state | {"language.norm.weight": torch.ones(3)}, checkpoint / "model.safetensors")
    devices = []
    build = LvlmBackbone.__init__

    def noted(*arguments: object) -> None:
        devices.append(torch.get_default_device().type)
        build(*arguments)

    monkeypatch.setattr(LvlmBackbone, "__init__", noted)
    with pytest.raises(CheckpointError, match=r"key 'language\.norm\.weight' has shape \(3,\), expected \(64,\)"):
        load_lvlm(checkpoint)
    assert devices == ["meta"]


def test_the_full_models_needs_follow_from_its_configuration() -> None:
    sizes = {"language": QWEN_7B, "vision": VIT_L, "connector_queries": 256, "connector_heads": 28}
    full = SMALL.model_copy(update=sizes)
    needed = footprint(full)
    assert 7e9 < needed.parameters < 8.5e9
    assert needed.disk_bytes == 4 * needed.parameters
