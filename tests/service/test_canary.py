"""The canary: golden inputs find the stage that does not answer as the original did."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from cirrus_client.bundle import Bundle, write_contract
from cirrus_client.canary import ARRAYS, read_canary
from cirrus_client.encoders import LocalEncoder
from cirrus_client.ensemble import TOKENIZE, Arrays
from cirrus_client.errors import BundleError, NotReady
from cirrus_client.files import sha256_of_file
from cirrus_client.replay import LocalRunner, replay
from tests.service.live import live
from tests.service.test_search import problem


def damaged(bundle: Bundle, root: Path, graph: str) -> Bundle:
    """Return a copy of a bundle in which the weights of one graph are a little other ones, with right checksums."""
    shutil.copytree(bundle.root, root)
    path = root / bundle.spec.graphs[graph].file
    onnx.save(with_noise(onnx.load(path), 0.02), path)
    listed = bundle.spec.files | {bundle.spec.graphs[graph].file: sha256_of_file(path)}
    write_contract(root, bundle.spec.model_copy(update={"files": listed}))
    return Bundle.open(root)


def with_noise(model: onnx.ModelProto, share: float) -> onnx.ModelProto:
    """Return a graph with noise in its weights. share: of their mean size."""
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype != np.float32 or not values.ndim:
            continue
        noise = np.random.default_rng(0).normal(scale=share * np.abs(values).mean() + 1e-3, size=values.shape)
        weight.CopyFrom(onnx.numpy_helper.from_array((values + noise).astype(values.dtype), weight.name))
    return model


def test_an_encoder_that_answers_rightly_passes_every_stage(bundle, tiny_zero_shot_bundle) -> None:
    for made in (bundle, tiny_zero_shot_bundle):
        result = replay(read_canary(made), made.spec, LocalRunner(LocalEncoder(made)))
        steps = {step.model for ensemble in made.spec.ensembles.values() for step in ensemble.steps}
        assert {check.stage for check in result.stages} == steps | set(made.spec.ensembles)
        assert result.lowest > 0.99999
        result.check("here")


@pytest.mark.parametrize("graph", ["vision_encoder", "text_encoder", "query_head", "gallery"])
@pytest.mark.slow
def test_a_damaged_graph_is_named_and_those_behind_it_are_not(bundle, tmp_path, graph) -> None:
    made = damaged(bundle, tmp_path / "bundle", graph)
    result = replay(read_canary(made), made.spec, LocalRunner(LocalEncoder(made)))
    missed = {check.stage for check in result.stages if check.cosine < result.cosine_min}
    assert missed & set(made.spec.graphs) == {graph} or (graph == "query_head" and missed == {graph, "encode_query"})
    with pytest.raises(NotReady, match=graph) as refused:
        result.check("here")
    assert refused.value.part == graph


@pytest.mark.parametrize("wrong", ["one id", "its end"])
def test_token_ids_that_are_others_or_cut_off_are_named(bundle, wrong: str) -> None:
    class Tokenizing(LocalRunner):
        def step(self, model: str, inputs: Arrays) -> Arrays:
            found = super().step(model, inputs)
            if model != TOKENIZE:
                return found
            token_ids = found["token_ids"].copy()
            token_ids[0, 1] += wrong == "one id"
            return {"token_ids": token_ids[:, :8] if wrong == "its end" else token_ids}

    result = replay(read_canary(bundle), bundle.spec, Tokenizing(LocalEncoder(bundle)))
    with pytest.raises(NotReady, match="stage tokenize does not answer rightly"):
        result.check("here")


def test_an_output_that_is_no_number_misses_beside_one_that_is_right(bundle) -> None:
    right = np.eye(2, 3, dtype=np.float32)
    canary = replace(read_canary(bundle), outputs={"graph": {"first": right, "second": right}})
    assert canary.cosine_of_outputs("graph", {"first": right, "second": right}) == 1
    for wrong in ("first", "second"):
        found = {"first": right, "second": right} | {wrong: np.full_like(right, np.nan)}
        assert np.isnan(canary.cosine_of_outputs("graph", found))


def test_a_bundle_without_a_canary_has_none_and_a_damaged_one_is_an_error(bundle, tmp_path) -> None:
    shutil.copytree(bundle.root, tmp_path / "old")
    older = {name: digest for name, digest in bundle.spec.files.items() if not name.startswith("canary")}
    write_contract(tmp_path / "old", bundle.spec.model_copy(update={"files": older}))
    assert read_canary(Bundle.open(tmp_path / "old")) is None
    shutil.copytree(bundle.root, tmp_path / "cut")
    cut = Bundle.open(tmp_path / "cut")
    (cut.root / ARRAYS).write_bytes((cut.root / ARRAYS).read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"canary\.npz"):
        read_canary(cut)


def test_a_ready_service_says_so_with_its_cosines(client) -> None:
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert [part["part"] for part in ready["parts"]] == ["pictures", "texts"]
    assert all(part["cosine"] > 0.99999 for part in ready["parts"])
    assert {'cirrus_canary_passed{part="pictures"} 1.0', 'cirrus_canary_passed{part="texts"} 1.0'} <= set(
        client.get("/metrics").text.splitlines()
    )


@pytest.mark.slow
def test_a_service_on_a_damaged_graph_is_alive_and_not_ready_and_names_the_stage(bundle, index_root, tmp_path) -> None:
    made = damaged(bundle, tmp_path / bundle.spec.name, "query_head")
    with live(tmp_path, made.root, "--index", index_root, "--in-process") as service, service.client() as client:
        refused = client.get("/readyz")
        assert (refused.status_code, problem(refused)["part"]) == (503, "query_head")
        assert client.get("/healthz").status_code == 200
        assert f'cirrus_canary_passed{{part="{bundle.spec.name}"}} 0.0' in client.get("/metrics").text
