"""No gallery is embedded by an encoder that answers otherwise than the torch original."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from typer.testing import CliRunner

from cirrus_client.bundle import Bundle, write_contract
from cirrus_client.canary import read_canary
from cirrus_client.cli.app import app
from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.checked import CheckedEngine
from cirrus_client.engines import Engine
from cirrus_client.errors import EngineError
from cirrus_client.gallery import read_gallery
from cirrus_client.gallery.cluster_tools import BundleTools
from cirrus_client.image.preprocess import Decoding
from tests.service.test_canary import damaged


class Mixing(Engine):
    """Mixes up the images of a batch's second half, in batches of more than eight, and counts its calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.inputs, self.outputs, self.device = engine.inputs, engine.outputs, engine.device
        self._engine, self.batches = engine, []

    def run(self, inputs):
        rows = len(next(iter(inputs.values())))
        self.batches.append(rows)
        order = np.r_[: rows // 2, np.roll(np.arange(rows // 2, rows), 1)] if rows > 8 else np.arange(rows)
        return {name: value[order] for name, value in self._engine.run(inputs).items()}


@pytest.mark.parametrize("graph", ["vision_encoder", "target_head", "gallery"])
@pytest.mark.slow
def test_a_damaged_graph_embeds_nothing_and_the_right_one_goes_on(photos, bundle, tmp_path, graph) -> None:
    wrong = damaged(bundle, tmp_path / "wrong", graph)
    command = ["embed", str(photos), "--out", str(tmp_path / "out"), "--batch-size", "3", "--bundle"]
    cache = ["--cache", str(tmp_path / "cache")] if graph != "gallery" else []
    refused = CliRunner().invoke(app, [*command, str(wrong.root), *cache])
    assert refused.exit_code == 1
    assert f"runs {graph} wrongly on" in refused.output
    assert len(read_gallery(tmp_path / "out", allow_empty=True)) == 0
    assert CliRunner().invoke(app, [*command, str(bundle.root)]).exit_code == 0
    assert len(read_gallery(tmp_path / "out")) == 60


def test_a_worker_of_a_cluster_checks_its_own_machine(photos, bundle, tmp_path) -> None:
    encoder, _ = BundleTools(damaged(bundle, tmp_path / "wrong", "gallery").root)(None)
    with pytest.raises(EngineError, match="runs gallery wrongly on"):
        encoder.encode_targets([photos / "000001.jpg"])


def test_a_copy_by_pickle_has_the_options_and_is_checked_too(bundle) -> None:
    options = {"engine": "onnxruntime", "decoding": Decoding.FAST, "threads": 1, "cut_texts": False}
    copy = pickle.loads(pickle.dumps(LocalEncoder(bundle, checked=True, **options)))
    assert {name: getattr(copy, f"_{name}") for name in options} == options
    assert isinstance(copy.graph("gallery"), CheckedEngine)


def test_every_place_of_a_batch_is_compared_in_the_jobs_own_batch(bundle) -> None:
    engine, canary = LocalEncoder(bundle).graph("gallery"), read_canary(bundle)
    pixels = np.concatenate([canary.tensors["pixels"]] * 10)
    CheckedEngine(Mixing(engine), "gallery", canary)({"pixels": pixels[:8]})
    with pytest.raises(EngineError, match="runs gallery wrongly on"):
        CheckedEngine(Mixing(engine), "gallery", canary)({"pixels": pixels[:14]})


def test_an_answer_that_is_no_number_is_refused_each_time(bundle) -> None:
    class Nothing(Mixing):
        def run(self, inputs):
            return {name: value * np.nan for name, value in super().run(inputs).items()}

    engine, canary = LocalEncoder(bundle).graph("gallery"), read_canary(bundle)
    held = CheckedEngine(Nothing(engine), "gallery", canary)
    for _ in ("first", "again"):
        with pytest.raises(EngineError, match="is nan, under"):
            held({"pixels": canary.tensors["pixels"]})


def test_threads_wait_for_one_check_and_get_their_own_answers(bundle) -> None:
    engine, canary = LocalEncoder(bundle).graph("gallery"), read_canary(bundle)
    inner = Mixing(engine)
    held, pixels = CheckedEngine(inner, "gallery", canary), canary.tensors["pixels"]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda item: held({"pixels": pixels[item % 2][None]}), range(24)))
    assert inner.batches == [1] * (24 + len(pixels))
    for item, answer in enumerate(found):
        np.testing.assert_array_equal(
            answer["target_embedding"], engine({"pixels": pixels[item % 2][None]})["target_embedding"]
        )


def test_a_library_that_prepares_images_otherwise_is_refused(bundle, tmp_path) -> None:
    """Pillow of another version may resize otherwise, which no engine can know."""
    other = bundle.spec.preprocess.model_copy(update={"mean": (0.9, 0.1, 0.5)})
    moved = Bundle(bundle.root, bundle.spec.model_copy(update={"preprocess": other}))
    with pytest.raises(EngineError, match="prepares images wrongly"):
        LocalEncoder(moved, checked=True)


def test_a_bundle_without_a_canary_is_believed(photos, bundle, tmp_path) -> None:
    shutil.copytree(bundle.root, tmp_path / "older")
    older = {name: digest for name, digest in bundle.spec.files.items() if not name.startswith("canary")}
    write_contract(tmp_path / "older", bundle.spec.model_copy(update={"files": older}))
    encoder = LocalEncoder(Bundle.open(tmp_path / "older"), checked=True)
    assert len(encoder.encode_targets([photos / "000001.jpg"])) == 1
