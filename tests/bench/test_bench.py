"""Small runs of the benches: every row is there, the ends agree, the files are written."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from PIL import Image

from cirrus_bench import queries, search
from cirrus_bench.gallery import END_TO_END, HEAD_SWAP, PAPER_GALLERIES, PAPERS_WAY, BenchRequest, measure_gallery
from cirrus_bench.limits import gemm_rates, operations_per_image, product_chain, products
from cirrus_bench.measure import time_interleaved
from cirrus_bench.report import write_report
from cirrus_client.bundle import Precision
from cirrus_client.engines import candidates
from cirrus_export.backbones.registry import load_backbone
from cirrus_export.compile.precision import quantised_layers
from cirrus_export.recipes.clip import Clip
from cirrus_export.recipes.recipe import Parts


@pytest.mark.timeout(300)
def test_a_small_bench_reports_every_row_and_equal_embeddings(tmp_path) -> None:
    request = BenchRequest(
        backbone="cirrus-demo", images=40, size_px=200, repeats=1, work=tmp_path / "work", peers=False
    )
    report = measure_gallery(request)
    stages = {row.stage for row in report.rows}
    assert stages == {"decode + preprocess", "encoder", "target head", "gallery graph", END_TO_END}
    ends = {row.engine: row for row in report.of_stage(END_TO_END)}
    precisions = [precision for precision in (Precision.FP32, Precision.BF16, Precision.INT8) if candidates(precision)]
    assert set(ends) == {
        PAPERS_WAY,
        HEAD_SWAP,
        *(f"Cirrus, {precision}{way}" for precision in precisions for way in ("", ", fast decoding")),
    }
    assert ends["Cirrus, fp32"].cosine_min > 0.9999
    assert ends["Cirrus, fp32"].top10_agreement > 0.99
    assert ends[HEAD_SWAP].cosine_min > 0.9999
    assert ends["Cirrus, int8"].cosine_min > 0.99
    for row in report.rows:
        assert row.images_per_s > 0
        assert row.gallery_seconds["CIRCO"] == pytest.approx(PAPER_GALLERIES["CIRCO"] / row.images_per_s)
    assert {(row.precision, row.batch_size) for row in report.sweep} == {
        (precision, size) for precision in precisions for size in (1, 4, 16, 64)
    }
    write_report(report, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["machine"]["packages"]["torch"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(part in text for part in (PAPERS_WAY, "machine's limits", "Batch size", "2 cores", "openvino"))
    assert Image.open(tmp_path / "out" / "report.png").width > 800


def test_operations_are_those_of_the_layers() -> None:
    recipe = Clip(Parts(load_backbone("cirrus-demo", "random", None), None), Clip.options_type())
    visual = recipe.backbone.clip.visual
    tokens, width = visual.positional_embedding.shape
    block, layers = tokens * 12 * width * width, len(visual.transformer.resblocks)
    # The last block: keys and values of all tokens, the rest of the CLS token alone.
    blocks = (layers - 1) * block + 2 * tokens * width * width + 10 * width * width
    assert blocks < operations_per_image(recipe.gallery_graph()) / 2 < 1.3 * blocks
    assert operations_per_image(recipe.gallery_graph()) < operations_per_image(recipe.vision_graph()) - block


def test_the_gemm_rate_is_of_each_precision_that_runs() -> None:
    rates = gemm_rates(time_interleaved(products([Precision.FP32, Precision.INT8]), 1))
    assert [rate.precision for rate in rates] == [Precision.FP32, Precision.INT8]
    assert all(rate.operations_per_s > 1e9 for rate in rates)


def test_the_products_of_the_int8_rate_are_quantised(tmp_path) -> None:
    generator = np.random.default_rng(0)
    onnx.save(product_chain(generator), tmp_path / "chain.onnx")
    rows = generator.standard_normal((2, 32, 2048), dtype=np.float32)
    layers = quantised_layers(tmp_path / "chain.onnx", Precision.INT8, {"rows": rows})
    assert layers == [f"matmul_{layer}" for layer in range(6)]


def test_search_rows_agree_with_numpy(tmp_path) -> None:
    report = search.measure_search(single=4000, multi=200)
    assert [(row.way, row.vectors) for row in report.rows] == [
        ("FAISS IndexFlatIP, bare", 1),
        ("Cirrus, exact", 1),
        ("Cirrus, approximate", 1),
        ("FAISS IndexFlatIP, bare", 32),
        ("Cirrus, exact", 32),
    ]
    assert all(row.agreement == 1 for row in report.rows if row.way == "Cirrus, exact")
    search.write_report(report, tmp_path)
    assert "approximate" in (tmp_path / "search.md").read_text()


@pytest.mark.timeout(300)
def test_queries_are_measured_on_a_real_triton(bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(queries, "_QUERIES", 40)
    monkeypatch.setattr(queries, "_CONCURRENCY", (1, 4))
    monkeypatch.setattr(queries, "_PHOTOS", 40)
    monkeypatch.setattr(queries, "_ROUNDS", 1)
    report = queries.measure_queries(bundle, tmp_path / "work")
    assert [latency.concurrency for latency in report.served] == [1, 4]
    if report.analyzed:
        assert report.analyzer.startswith("perf_analyzer 2.")
        assert [latency.concurrency for latency in report.analyzed] == [1, 4]
    else:
        assert "apt-get install libb64-0d" in report.analyzer
    for latency in (report.bare, *report.served, *report.analyzed):
        assert 0 < latency.p50_ms <= latency.p95_ms <= latency.p99_ms
    assert set(report.stages) == {1, 4}
    assert min(report.bulk) > 0
    assert {"vision_encoder", "query_head", "image_preprocess"} <= {stage.model for stage in report.stages[4]}
    queries.write_report(report, tmp_path)
    assert "Triton adds" in (tmp_path / "queries.md").read_text()
    assert Image.open(tmp_path / "queries.png").width > 800
