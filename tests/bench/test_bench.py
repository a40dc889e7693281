"""Small runs of the benches: every row is there, the embeddings agree, the files are written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from cirrus_bench import ceiling, queries, search
from cirrus_bench.ceiling import operations_per_image, peak_rates, product_chain, products
from cirrus_bench.errors import PeerError
from cirrus_bench.gallery import end_to_end, measure, stages
from cirrus_bench.gallery import report as gallery_report
from cirrus_bench.gallery.case import BASELINE, CACHED_FEATURES, Stage, cirrus
from cirrus_bench.gallery.measure import BenchRequest, measure_gallery
from cirrus_bench.gallery.report import PAPER_GALLERIES
from cirrus_bench.measure import time_interleaved
from cirrus_bench.perf_analyzer import PerfAnalyzer
from cirrus_bench.subjects import PRECISIONS, Subjects, demo_request, kept_bundle
from cirrus_client.bundle import Bundle, Precision, write_contract
from cirrus_client.engines import candidates
from cirrus_client.image.preprocess import Decoding
from cirrus_client.index import SearchKind
from cirrus_demo.weights import DemoWeights
from cirrus_export.backbones.registry import load_backbone
from cirrus_export.compile.precision import quantised_layers
from cirrus_export.draft import recorded_versions
from cirrus_export.pipeline import build_recipe
from cirrus_export.recipes.clip import Clip
from cirrus_export.recipes.recipe import Parts
from cirrus_export.recipes.transagg_union import TransAggUnion
from tests.registry import need_registry


def test_a_small_bench_reports_every_row_and_equal_embeddings(weights, demo_bundle_in, tmp_path, monkeypatch) -> None:
    """What makes figures steadier is small here: products, rows, copies, and what torch.compile compiles.

    The demo's trained weights stand for random ones: other tests export them as well.
    """
    monkeypatch.setattr(measure, "bench_subjects", partial(demo_subjects, weights, demo_bundle_in))
    monkeypatch.setattr(ceiling, "_SIDE", 512)
    for module in (end_to_end, measure, gallery_report):
        monkeypatch.setattr(module, "CACHED_IMAGES", 64)
    for module in (stages, measure, gallery_report):
        monkeypatch.setattr(module, "HEAD_ROWS", 64)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    request = BenchRequest(
        backbone="cirrus-demo", images=40, size_px=200, repeats=1, work=tmp_path / "work", peers=False
    )
    report = measure_gallery(request)
    assert {row.stage for row in report.rows} == set(Stage)
    precisions = [precision for precision in (Precision.FP32, Precision.BF16, Precision.INT8) if candidates(precision)]
    decodings = (Decoding.EXACT, Decoding.FAST)
    assert {row.title for row in report.of_stage(Stage.END_TO_END)} == {
        BASELINE.title,
        CACHED_FEATURES.title,
        *(cirrus(precision, decoding).title for precision in precisions for decoding in decodings),
    }
    for case, cosine in ((cirrus(Precision.FP32), 0.9999), (CACHED_FEATURES, 0.9999), (cirrus(Precision.INT8), 0.99)):
        if case.precision in precisions:
            assert report.of_case(case).fidelity.cosine_min > cosine
    assert report.of_case(cirrus(Precision.FP32)).fidelity.top10_agreement > 0.99
    for row in report.rows:
        assert row.images_per_s > 0
        assert row.gallery_seconds["CIRCO"] == pytest.approx(PAPER_GALLERIES["CIRCO"] / row.images_per_s)
    assert {(row.precision, row.batch_size) for row in report.sweep} == {
        (precision, size) for precision in precisions for size in (1, 4, 16, 64)
    }
    json_file, page, picture = report.write(tmp_path / "out")
    assert json.loads(json_file.read_text())["machine"]["packages"]["torch"]
    text = page.read_text()
    assert all(part in text for part in (BASELINE.title, "The machine's ceiling", "Batch size", str(report.machine)))
    assert all(row.device in text for row in report.sweep)
    assert Image.open(picture).width > 800


def demo_subjects(
    weights: DemoWeights, exported: Callable[[Precision], Bundle], backbone: str, work: Path
) -> Subjects[TransAggUnion]:
    request = demo_request(weights, work, Precision.FP32)
    recipe = build_recipe(request)
    assert isinstance(recipe, TransAggUnion)
    assert backbone == request.backbone
    return Subjects(recipe, {one: exported(one) for one in PRECISIONS if candidates(one)})


def test_a_bundle_of_other_packages_is_not_measured_again(tiny_bundle, tmp_path) -> None:
    def kept(versions: dict[str, str]) -> Bundle | None:
        write_contract(tmp_path, tiny_bundle.spec.model_copy(update={"versions": versions}))
        return kept_bundle(tmp_path)

    shutil.copytree(tiny_bundle.root, tmp_path, dirs_exist_ok=True)
    assert kept(recorded_versions()) is not None
    assert kept(recorded_versions() | {"torch": "2.0.0"}) is None
    assert kept_bundle(tmp_path / "none") is None


def test_operations_are_those_of_the_layers() -> None:
    recipe = Clip(Parts(load_backbone("cirrus-demo", "random", None), None), Clip.options_type())
    visual = recipe.backbone.clip.visual
    tokens, width = visual.positional_embedding.shape
    block, layers = tokens * 12 * width * width, len(visual.transformer.resblocks)
    # The last block: keys and values of all tokens, the rest of the CLS token alone.
    blocks = (layers - 1) * block + 2 * tokens * width * width + 10 * width * width
    assert blocks < operations_per_image(recipe.gallery_graph()) / 2 < 1.3 * blocks
    assert operations_per_image(recipe.gallery_graph()) < operations_per_image(recipe.backbone.vision_graph()) - block


def test_a_peak_rate_is_measured_for_each_precision_that_runs(monkeypatch) -> None:
    monkeypatch.setattr(ceiling, "_SIDE", 256)
    precisions = [precision for precision in (Precision.FP32, Precision.INT8) if candidates(precision)]
    rates = peak_rates(time_interleaved(products(precisions), 1))
    assert [rate.precision for rate in rates] == precisions
    assert all(rate.operations_per_s > 0 for rate in rates)


@pytest.mark.slow
def test_the_products_of_the_int8_rate_are_quantised(tmp_path) -> None:
    generator = np.random.default_rng(0)
    onnx.save(product_chain(generator), tmp_path / "chain.onnx")
    rows = generator.standard_normal((2, 32, 2048), dtype=np.float32)
    layers = quantised_layers(tmp_path / "chain.onnx", Precision.INT8, {"rows": rows})
    assert layers == [f"matmul_{layer}" for layer in range(6)]


@pytest.mark.slow
def test_search_rows_agree_with_numpy(tmp_path) -> None:
    report = search.measure_search(single=4000, multi=200)
    assert [(row.kind, row.vectors) for row in report.rows] == [
        (None, 1),
        (SearchKind.EXACT, 1),
        (SearchKind.APPROXIMATE, 1),
        (None, 32),
        (SearchKind.EXACT, 32),
    ]
    assert all(row.agreement == 1 for row in report.rows if row.kind is SearchKind.EXACT)
    _, page = report.write(tmp_path)
    assert "| Cirrus, approximate |" in page.read_text()


@pytest.mark.triton
def test_queries_are_measured_on_a_real_triton(bundle, tmp_path, monkeypatch) -> None:
    def not_installed(folder: Path) -> PerfAnalyzer:
        raise PeerError("perf_analyzer is not installed")

    monkeypatch.setattr(queries, "PerfAnalyzer", not_installed)
    monkeypatch.setattr(queries, "_QUERIES", 40)
    monkeypatch.setattr(queries, "_CONCURRENCY", (1, 4))
    monkeypatch.setattr(queries, "_PHOTOS", 40)
    monkeypatch.setattr(queries, "_ROUNDS", 1)
    report = queries.measure_queries(bundle, tmp_path / "work")
    assert [latency.concurrency for latency in report.served] == [1, 4]
    for latency in (report.in_process, *report.served):
        assert 0 < latency.p50_ms <= latency.p95_ms <= latency.p99_ms
    assert set(report.stages) == {1, 4}
    assert min(report.bulk.in_process, report.bulk.served) > 0
    assert {"vision_encoder", "query_head", "image_preprocess"} <= {stage.model for stage in report.stages[4]}
    _, page, picture = report.write(tmp_path)
    assert "Triton adds" in page.read_text()
    assert "Not measured: perf_analyzer is not installed" in page.read_text()
    assert Image.open(picture).width > 800


@pytest.mark.network
def test_perf_analyzer_measures_the_same_server(server, probe, request) -> None:
    if shutil.which("perf_analyzer") is None:
        need_registry()
    try:
        analyzer = PerfAnalyzer(request.config.cache.mkdir("perf_analyzer"))
    except PeerError as error:
        if "apt-get install libb64-0d" not in str(error):
            raise
        pytest.skip(str(error))
    assert analyzer.version.startswith("2.")
    latency = analyzer.measure(server, probe.queries, 4)
    assert latency.concurrency == 4
    assert 0 < latency.p50_ms <= latency.p95_ms <= latency.p99_ms
