"""MTST's edit writer, a small InstructBLIP: its texts are the original's, here and through Triton."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cirrus_client.bundle import Precision
from cirrus_client.engines import EngineName
from cirrus_client.errors import BundleError, CheckpointError, FidelityError, InvalidImage, ServerError
from cirrus_client.names import Flavour
from cirrus_client.suggest import LocalSuggester, SuggestSpec, TritonSuggester, read_suggester
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.bert_tokenizer import write_bert_tokenizer
from cirrus_export.repository import write_shared_repository
from cirrus_export.suggester import export as module
from cirrus_export.suggester.edit_writer import InstructBlipForConditionalGeneration, NextTokens, ReadImage
from cirrus_export.suggester.export import export_suggester
from tests.export.compiled import LOWER, check_compiles, needs_rtx
from tests.test_command_line import CIRRUS

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from transformers import InstructBlipConfig

    folder = tmp_path_factory.mktemp("instructblip")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InstructBlipConfig(
        vision_config={**small, "image_size": 56, "patch_size": 14},
        qformer_config={**small, "vocab_size": 30523, "encoder_hidden_size": 64, "cross_attention_frequency": 2},
        text_config={
            **small,
            "model_type": "llama",
            "vocab_size": 30522,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 101,
            "eos_token_id": 102,
            "pad_token_id": 0,
        },
        num_query_tokens=8,
    )
    torch.manual_seed(6)
    model = InstructBlipForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_bert_tokenizer(folder, context_length=32, prompt=Prompt())
    (folder / "qformer_tokenizer").mkdir()
    write_bert_tokenizer(folder / "qformer_tokenizer", context_length=32, prompt=Prompt())
    return folder


@pytest.fixture(scope="module")
def pairs(probe) -> list[tuple[bytes, bytes]]:
    return [(query.image, probe.gallery[query.target]) for query in probe.queries[:4]]


@pytest.fixture(scope="module")
def suggester(checkpoint, pairs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("suggesters") / "mtst"
    export_suggester(checkpoint, out, pairs)
    return out


def test_texts_depend_on_both_images_and_their_order(suggester, pairs) -> None:
    local = LocalSuggester(suggester)
    (a, b), (c, _) = pairs[0], pairs[1]
    texts = [local.suggest(a, b), local.suggest(b, a), local.suggest(a, c)]
    assert all(texts)
    assert len(set(texts)) > 1


def greedy_without_cache(model, images: torch.Tensor, spec: SuggestSpec) -> tuple[list[int], torch.Tensor]:
    """Return what the language model writes if it reads everything again for each token, and the logits [T, V].

    images: the tokens of both, [2, Q, D].
    """
    words = model.get_input_embeddings()
    read = torch.stack([images.flatten(0, 1)[-1 - i] if i < 0 else words.weight[i] for i in spec.prompt])
    logits, written = [], []
    while len(written) < spec.max_tokens and spec.end_id not in written:
        with torch.no_grad():
            so_far = torch.cat([read, words(torch.tensor(written, dtype=torch.int64))])
            logits.append(model(inputs_embeds=so_far[None], use_cache=False).logits[0, -1])
        written.append(int(logits[-1].argmax()))
    return [token for token in written if token != spec.end_id], torch.stack(logits)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_cache_changes_no_token_and_no_logit(kind, seed) -> None:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400}
    own = {
        "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    }
    language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **own[kind])).eval()
    for parameter in language_model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    following = NextTokens(SimpleNamespace(language_model=language_model))
    layers, heads, size = following.cached_per_token()
    images = torch.randn(3, 2, 4, 32)
    prompt, steps = (1, 7, -1, -2, -3, -4, 9, -5, -6, -7, -8, 11), 8
    cache, filled = torch.zeros(3, layers, 2, heads, len(prompt) + steps, size), 0
    given, logits = torch.tensor([prompt] * 3), []
    with torch.no_grad():
        for _ in range(steps):
            found, added = following(images[:, 0], images[:, 1], given, torch.full((3, 1), filled), cache)
            cache[..., filled : filled + given.shape[1], :] = added
            filled += given.shape[1]
            given = found.argmax(dim=1)[:, None]
            logits.append(found)
    for pair, found in zip(images, torch.stack(logits, dim=1), strict=True):
        spec = SimpleNamespace(prompt=prompt, end_id=-1, max_tokens=steps)
        token_ids, expected = greedy_without_cache(language_model, pair, spec)
        assert found.argmax(dim=1).tolist() == token_ids
        assert torch.cosine_similarity(found.double(), expected.double()).min() > 0.999999


@pytest.mark.parametrize("engine", [EngineName.ONNXRUNTIME, EngineName.OPENVINO])
def test_a_batch_of_texts_that_end_at_different_places_is_the_originals(engine, checkpoint, suggester, pairs) -> None:
    pytest.importorskip(engine)
    local = LocalSuggester(suggester, engine=engine)
    pixels = np.stack([local.pixels(*pair) for pair in pairs])
    first = local.token_ids(pixels)
    end_id = max(set(first[0]), key=lambda token: (token not in first[1]) * first[0].index(token))
    local.spec = local.spec.model_copy(update={"end_id": end_id})
    original = InstructBlipForConditionalGeneration.from_pretrained(checkpoint).eval()
    read = ReadImage(original, module._prompt(checkpoint, original).instruction)
    with torch.no_grad():
        expected = [
            greedy_without_cache(original.language_model, read(torch.from_numpy(both)), local.spec) for both in pixels
        ]
    assert local.token_ids(pixels) == [token_ids for token_ids, _ in expected]
    assert [local.token_ids(both[None])[0] for both in pixels] == local.token_ids(pixels)
    assert len({len(token_ids) for token_ids in local.token_ids(pixels)}) > 1


def test_a_suggester_from_before_the_cache_is_refused(suggester, tmp_path) -> None:
    contract = json.loads((suggester / "suggest.json").read_text())
    del contract["format"], contract["prompt"]
    (tmp_path / "suggest.json").write_text(json.dumps(contract))
    with pytest.raises(BundleError, match=r"field 'format'.*export it again with `cirrus export-suggester`"):
        LocalSuggester(tmp_path)


def test_weights_are_on_disk_once(suggester, tmp_path) -> None:
    write_shared_repository([], Flavour.PYTHON, tmp_path / "shared", suggester=suggester)
    for repository in (suggester / "triton/python", tmp_path / "shared"):
        for name in read_suggester(suggester).files:
            assert (repository / "suggest/1" / name).samefile(suggester / name)


def test_a_language_model_without_keys_and_values_is_refused() -> None:
    mamba = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mamba", hidden_size=8, num_hidden_layers=1, vocab_size=9)
    )
    with pytest.raises(CheckpointError, match="language model 'mamba': keys and values have the shapes none"):
        NextTokens(SimpleNamespace(language_model=mamba)).cached_per_token()


@needs_rtx
@pytest.mark.parametrize("precision", [Precision.FP32, *LOWER])
def test_its_graphs_compile(suggester, precision, tmp_path) -> None:
    for name, graph in read_suggester(suggester).graphs.items():
        check_compiles(name, suggester / graph.file, graph, precision, tmp_path)


@pytest.mark.triton
def test_the_server_gives_the_same_text_and_names_the_bad_image(suggester, pairs) -> None:
    http, grpc, metrics = free_ports(3)
    with TritonServer(suggester / "triton/python", http_port=http, grpc_port=grpc, metrics_port=metrics) as server:
        served = TritonSuggester(server.grpc_url)
        assert served.suggest(*pairs[0]) == LocalSuggester(suggester).suggest(*pairs[0])
        with pytest.raises(InvalidImage, match="target image: the bytes are not an image"):
            served.suggest(pairs[0][0], b"certainly no image")
    with pytest.raises(ServerError, match="not available"):
        served.suggest(*pairs[0])


def test_a_text_that_is_not_the_originals_fails_the_gate(checkpoint, pairs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "greedy", lambda *arguments: [1, 2, 3])
    with pytest.raises(FidelityError, match=r"0\.0% of the texts agree"):
        export_suggester(checkpoint, tmp_path / "mtst", pairs)
    assert not (tmp_path / "mtst" / "triton").exists()
    with pytest.raises(BundleError, match="failed its fidelity gate"):
        LocalSuggester(tmp_path / "mtst")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_config": {"model_type": "t5"}}, "its language model is 't5', expected one without an encoder"),
        ({"model_type": "blip-2"}, "describes a model of type 'blip-2', expected 'instructblip'"),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "'auto_map' names code"),
        ({"text_config": None}, "is no configuration of an InstructBLIP"),
    ],
)
def test_a_model_is_refused_by_its_configuration_before_its_weights_are_read(
    changes, reason, checkpoint, pairs, tmp_path
) -> None:
    folder = tmp_path / "instructblip"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    config = json.loads((checkpoint / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=reason):
        export_suggester(folder, tmp_path / "out", pairs)


def test_a_damaged_tokenizer_is_named(checkpoint, pairs, tmp_path) -> None:
    folder = tmp_path / "instructblip"
    shutil.copytree(checkpoint, folder)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(CheckpointError, match=r"instructblip/tokenizer\.json: can't be read as a tokenizer"):
        export_suggester(folder, tmp_path / "out", pairs)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, pairs) -> None:
    with pytest.raises(CheckpointError, match=r"expected a folder with config\.json"):
        export_suggester(tmp_path, tmp_path / "out", pairs)
    with pytest.raises(BundleError, match="is not a suggester"):
        LocalSuggester(tmp_path)


def test_a_search_service_suggests_what_the_suggester_does(
    suggester, pairs, tiny_bundle, pictures, tmp_path: Path
) -> None:
    import base64

    from cirrus_client.encoders import LocalEncoder
    from cirrus_client.gallery import embed_gallery, read_gallery
    from cirrus_client.index import build_index
    from tests.service.live import live

    embed_gallery(pictures, tmp_path / "gallery", LocalEncoder(tiny_bundle))
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    options = ("--index", tmp_path / "index", "--in-process", "--suggester", suggester)
    with live(tmp_path, tiny_bundle.root, *options) as service, service.client() as client:
        reference, target = pairs[0]
        images = [{"image": base64.b64encode(image).decode()} for image in (reference, target)]
        found = client.post("/v1/suggest", json=dict(zip(("reference", "target"), images, strict=True)))
        assert found.json() == {"text": LocalSuggester(suggester).suggest(reference, target)}
        by_id = client.post("/v1/suggest", json={"reference": {"id": "000001.jpg"}, "target": {"id": "000002.jpg"}})
        assert by_id.status_code == 200
        bad = client.post("/v1/suggest", json={"reference": images[0], "target": {"image": "AAAA"}}).json()
        assert (bad["type"], bad["item"]) == ("urn:cirrus:InvalidImage", "target")
        assert client.get("/v1/collections").json()["collections"][0]["suggest"]
        expected = client.post("/v1/suggest", json={"reference": {"id": "000001.jpg"}, "target": {"id": "000002.jpg"}})
        suggested_on_the_page(service.url, pictures / "000001.jpg", expected.json()["text"])


def suggested_on_the_page(url: str, reference: Path, expected: str) -> None:
    """In a browser, the edit that leads from a picture to a result is written into the text."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.set_input_files("#file", reference)
        page.get_by_label("Suggest an edit that leads to 000002.jpg").click()
        sync_api.expect(page.locator("#text")).to_have_value(expected)
        sync_api.expect(page.locator("#notice")).to_contain_text("000002.jpg")
        browser.close()


def test_the_texts_of_many_pairs_in_one_command(suggester, pairs, tmp_path) -> None:
    for place, images in enumerate(pairs[:2]):
        for side, image in zip(("reference", "target"), images, strict=True):
            (tmp_path / f"{place}.{side}.jpg").write_bytes(image)
    named = [{"reference": f"{place}.reference.jpg", "target": f"{place}.target.jpg"} for place in range(2)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, named)))
    command = [*CIRRUS, "suggest", tmp_path / "pairs.jsonl", "--model", suggester, "--out", tmp_path / "out.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("out.jsonl: 2 edit texts, 0 of them from before, 0 failed\n")
    found = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [LocalSuggester(suggester).suggest(*images) for images in pairs[:2]]
    assert "2 of them from before" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    alone = [*CIRRUS, "suggest", tmp_path / "pairs.jsonl", "--model", suggester]
    refused = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "a file of pairs" in refused.stderr
