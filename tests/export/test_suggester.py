"""MTST's edit writer, a small InstructBLIP: its texts are the original's, here and through Triton."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from cirrus_client.bundle import DType, GraphSpec, Precision
from cirrus_client.cli.verify import verify
from cirrus_client.engines import EngineName
from cirrus_client.errors import (
    BundleError,
    CheckpointError,
    EngineError,
    FidelityError,
    InvalidImage,
    NotReady,
    ServerError,
)
from cirrus_client.files import sha256_of_file, write_model
from cirrus_client.image.preprocess import Interpolation, Pad
from cirrus_client.names import Flavour
from cirrus_client.service.readiness import Canaries
from cirrus_client.suggest import LocalSuggester, SuggestSpec, TritonSuggester, read_suggester
from cirrus_client.suggest_canary import CANARY, check_texts, read_suggest_canary
from cirrus_client.triton.server import TritonServer, free_ports
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.bert_tokenizer import write_bert_tokenizer
from cirrus_export.cli import compile_command, recipes_command
from cirrus_export.compile import precision as precision_module
from cirrus_export.gate.thresholds import TEXT_THRESHOLDS
from cirrus_export.repository import write_shared_repository
from cirrus_export.suggester import export as module
from cirrus_export.suggester import original as original_module
from cirrus_export.suggester.edit_writer import InstructBlipForConditionalGeneration, NextTokens, ReadImage
from cirrus_export.suggester.export import export_suggester
from cirrus_export.suggester.gate import PairFidelity, SuggesterReport, report
from tests.export.compiled import LOWER, check_compiles, needs_rtx
from tests.service.test_canary import with_noise
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


@pytest.fixture
def converted(suggester, monkeypatch) -> None:
    """An export takes the graphs of `suggester` instead of converting them again."""
    monkeypatch.setattr(module, "write_onnx", conversions_of(suggester))


def conversions_of(suggester: Path):
    graphs = read_suggester(suggester).graphs

    def write_onnx(graph, path: Path) -> GraphSpec:
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(suggester / graphs[graph.name].file, path)
        return graphs[graph.name]

    return write_onnx


@pytest.fixture(scope="module")
def int8_suggester(checkpoint, suggester, pairs, tmp_path_factory) -> Path:
    """With a threshold of its own: with random weights, the best two of 30,522 tokens are often as good as equal."""
    out = tmp_path_factory.mktemp("suggesters") / "mtst-int8"
    limits = TEXT_THRESHOLDS[Precision.INT8].model_copy(update={"next_token_agreement": 0.7})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_onnx", conversions_of(suggester))
        patch.setitem(TEXT_THRESHOLDS, Precision.INT8, limits)
        export_suggester(checkpoint, out, pairs, precision=Precision.INT8)
    return out


def damaged(suggester: Path, root: Path, graph: str) -> Path:
    """Return a copy of a suggester in which the weights of one graph are other ones, with right checksums."""
    shutil.copytree(suggester, root)
    spec = read_suggester(suggester)
    path = root / spec.graphs[graph].file
    onnx.save(with_noise(onnx.load(path), 0.5), path)
    listed = spec.files | {spec.graphs[graph].file: sha256_of_file(path)}
    write_model(root / "suggest.json", spec.model_copy(update={"files": listed}))
    return root


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


def test_the_contract_of_a_float32_suggester_is_as_before_there_were_precisions(suggester) -> None:
    assert "precision" not in json.loads((suggester / "suggest.json").read_text())
    assert read_suggester(suggester).precision is Precision.FP32


def test_a_lower_precision_is_in_its_graphs_its_contract_and_its_report(int8_suggester, suggester, pairs) -> None:
    assert json.loads((int8_suggester / "suggest.json").read_text())["precision"] == "int8"
    local = LocalSuggester(int8_suggester)
    for graph in local.spec.graphs.values():
        assert any(node.op_type == "QuantizeLinear" for node in onnx.load(int8_suggester / graph.file).graph.node)
        assert {spec.dtype for spec in (*graph.inputs, *graph.outputs)} <= {DType.FLOAT32, DType.INT64}
    found = SuggesterReport.model_validate_json((int8_suggester / "report.json").read_bytes())
    full = SuggesterReport.model_validate_json((suggester / "report.json").read_bytes())
    assert (found.precision, full.precision) == (Precision.INT8, Precision.FP32)
    for lower, row in zip(found.graphs, full.graphs, strict=True):
        assert (lower.graph, lower.items) == (row.graph, row.items)
        assert 0.99 < lower.cosine_min < 0.9999 < row.cosine_min
    assert 0.7 <= found.next_token_agreement < full.next_token_agreement == full.text_agreement == 1
    written = [local.suggest(*pair) for pair in pairs]
    original = [LocalSuggester(suggester).suggest(*pair) for pair in pairs]
    agreeing = np.mean([one == other for one, other in zip(written, original, strict=True)])
    assert found.text_agreement == agreeing
    page = (int8_suggester / "report.md").read_text()
    assert "Precision int8" in page
    assert f"| {found.next_token_agreement:.2%} | 70.0% |" in page
    assert f"| whole text, token by token | 4 | {agreeing:.2%} | reported only |" in page


@pytest.mark.parametrize("precision", list(Precision))
def test_what_misses_a_threshold_of_its_precision_is_named(precision) -> None:
    spec = SimpleNamespace(name="mtst", precision=precision)

    def failures(*, same: int, agrees: bool, cosine: float) -> tuple[str, ...]:
        same_next = np.arange(200) < same
        pair = PairFidelity("red", agrees, image_cosine=1.0, logits_cosine=cosine, same_next=same_next)
        return report(SimpleNamespace(spec=spec, device="none"), [pair]).failures

    assert failures(same=200, agrees=True, cosine=1.0) == ()
    differing = failures(same=199, agrees=False, cosine=0.999995)
    assert differing == (("0.0% of the texts agree with the original's, 99% must",) if precision == "fp32" else ())
    (few,) = failures(same=160, agrees=True, cosine=1.0)
    assert few.startswith("80.0% of the next tokens agree with the original's")
    for cosine in (0.9, float("nan")):
        (far,) = failures(same=200, agrees=True, cosine=cosine)
        assert far.startswith(f"graph next_tokens, output logits: cosine to the original {cosine:.6f} is under")


def test_a_precision_that_nothing_here_runs_is_refused_before_weights_are_read(tmp_path, pairs, monkeypatch) -> None:
    monkeypatch.setattr(precision_module, "candidates", lambda precision: [])
    with pytest.raises(EngineError, match="--precision bf16: no engine here runs it"):
        export_suggester(tmp_path / "nothing", tmp_path / "out", pairs, precision=Precision.BF16)
    assert not (tmp_path / "out").exists()


def test_a_suggester_is_not_compiled_and_the_message_says_what_to_do(suggester) -> None:
    with pytest.raises(BundleError, match=r"is a suggester.*cirrus export-suggester --precision"):
        compile_command(suggester)


def test_the_list_of_recipes_says_how_the_edit_writer_is_exported(capsys) -> None:
    recipes_command()
    assert "MTST's edit writer" in capsys.readouterr().out


def test_what_runs_a_suggester_rightly_passes_its_canary(suggester, int8_suggester, pairs) -> None:
    for root in (suggester, int8_suggester):
        local = LocalSuggester(root)
        canary = read_suggest_canary(root, local.spec)
        assert len(canary.pairs) == 2
        assert {(pair.reference, pair.target) for pair in canary.pairs} <= set(pairs)
        check_texts(canary, local, "here")
    assert all(pair.original for pair in read_suggest_canary(suggester, read_suggester(suggester)).pairs)


@pytest.mark.parametrize("graph", ["read_image", "next_tokens"])
def test_a_damaged_graph_writes_other_texts_than_the_canary_and_a_service_is_not_ready(
    graph, suggester, tmp_path
) -> None:
    other = LocalSuggester(damaged(suggester, tmp_path / "mtst", graph))
    canary = read_suggest_canary(suggester, read_suggester(suggester))
    with pytest.raises(NotReady, match=r"^here does not write as its export did: golden pair") as refused:
        check_texts(canary, other, "here")
    first = canary.pairs[0]
    found = other.suggest(first.reference, first.target)
    assert f"golden pair 1 gets the text {found!r}, expected {first.text!r}" in str(refused.value)
    canaries = Canaries(SimpleNamespace(versions=list), other)
    with pytest.raises(NotReady, match="suggester mtst: its canary was not replayed yet"):
        asyncio.run(canaries.readiness())
    asyncio.run(canaries.replay())
    with pytest.raises(NotReady, match="suggester mtst does not write as its export did") as refused:
        asyncio.run(canaries.readiness())
    assert refused.value.part == "suggest"


def test_a_suggester_of_an_older_export_has_no_canary_and_is_served(suggester, tmp_path) -> None:
    shutil.copytree(suggester, tmp_path / "old")
    spec = read_suggester(suggester)
    older = {name: digest for name, digest in spec.files.items() if name != CANARY}
    write_model(tmp_path / "old" / "suggest.json", spec.model_copy(update={"files": older}))
    canaries = Canaries(SimpleNamespace(versions=list), LocalSuggester(tmp_path / "old"))
    asyncio.run(canaries.replay())
    assert [part.part for part in asyncio.run(canaries.readiness()).parts] == ["mtst"]
    with pytest.raises(BundleError, match="has no canary, as older exports; export it again"):
        verify(tmp_path / "old", server="localhost:1")


def test_what_waits_for_a_server_is_bounded(suggester) -> None:
    config = pb.ModelConfig()
    text_format.Parse((suggester / "triton/python/suggest/config.pbtxt").read_text(), config)
    queue = config.dynamic_batching.default_queue_policy
    assert queue.max_queue_size == 64
    assert queue.timeout_action == pb.ModelQueuePolicy.REJECT
    assert (
        queue.default_timeout_microseconds / 1e6 == inspect.signature(TritonSuggester).parameters["timeout_s"].default
    )


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
def test_the_server_gives_the_same_text_passes_the_canary_and_names_the_bad_image(suggester, pairs, tmp_path) -> None:
    http, grpc, metrics = free_ports(3)
    with TritonServer(suggester / "triton/python", http_port=http, grpc_port=grpc, metrics_port=metrics) as server:
        served = TritonSuggester(server.grpc_url)
        local, bad = LocalSuggester(suggester), (pairs[0][0], b"certainly no image")

        def text_or_reason(pair: tuple[bytes, bytes]) -> str:
            try:
                return served.suggest(*pair)
            except InvalidImage as error:
                return error.reason.partition(" in a known format")[0]

        asked = [*pairs[:3], bad] * 5  # those that wait for one another are read as one batch
        expected = [*(local.suggest(*pair) for pair in pairs[:3]), "target image: the bytes are not an image"] * 5
        with ThreadPoolExecutor(len(asked)) as pool:
            assert list(pool.map(text_or_reason, asked)) == expected
        command = [*CIRRUS, "verify", "--server", server.grpc_url]
        held = subprocess.run([*command, suggester], capture_output=True, text=True, check=True)
        assert "all 2 golden pairs get the text that mtst wrote at its export" in held.stdout
        other = with_other_text(suggester, tmp_path / "other")
        missed = subprocess.run([*command, other], capture_output=True, text=True, check=False)
        assert missed.returncode == 1
        assert f"the server at {server.grpc_url} does not write as its export did: golden pair 2" in missed.stderr
        assert "expected 'other weights'" in missed.stderr
        assert "golden pair 1" not in missed.stderr
    with pytest.raises(ServerError, match="not available"):
        served.suggest(*pairs[0])


def with_other_text(suggester: Path, root: Path) -> Path:
    """Return a copy of a suggester whose second golden pair has another text."""
    shutil.copytree(suggester, root)
    spec = read_suggester(suggester)
    canary = read_suggest_canary(suggester, spec)
    first, second = canary.pairs
    other = second.model_copy(update={"text": "other weights"})
    write_model(root / CANARY, canary.model_copy(update={"pairs": (first, other)}))
    listed = spec.files | {CANARY: sha256_of_file(root / CANARY)}
    write_model(root / "suggest.json", spec.model_copy(update={"files": listed}))
    return root


@pytest.mark.usefixtures("converted")
def test_a_text_that_is_not_the_originals_fails_the_gate(checkpoint, pairs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(original_module, "greedy", lambda *arguments: [1, 2, 3])
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


def test_images_are_prepared_as_the_folder_says(checkpoint, pairs, converted, tmp_path) -> None:
    folder = tmp_path / "instructblip"
    shutil.copytree(checkpoint, folder)
    settings = {"size": {"height": 56, "width": 56}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    export_suggester(folder, tmp_path / "out", pairs[:1])
    found = read_suggester(tmp_path / "out").preprocess
    assert (found.size_px, found.pad, found.interpolation) == (56, Pad.STRETCH, Interpolation.BILINEAR)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 64, "width": 64}}))
    with pytest.raises(
        CheckpointError, match=r"preprocessor_config\.json: size is 64, and the vision tower .* 56 pixels"
    ):
        export_suggester(folder, tmp_path / "out", pairs[:1])


def test_a_rotation_that_depends_on_the_length_is_refused(checkpoint, pairs, tmp_path) -> None:
    folder = tmp_path / "instructblip"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its rope_type is dynamic, and default, linear, llama3, yarn can be"):
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
        assert {"part": "mtst", "space": None, "cosine": None} in client.get("/readyz").json()["parts"]
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
