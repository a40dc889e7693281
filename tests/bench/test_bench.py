"""A small run of the bench: every row is there, the two ends agree, the files are written."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from cirrus_bench.gallery import PAPER_GALLERIES, BenchRequest, measure_gallery
from cirrus_bench.report import write_report


@pytest.mark.timeout(300)
def test_a_small_bench_reports_every_row_and_equal_embeddings(tmp_path) -> None:
    request = BenchRequest(backbone="cirrus-demo", images=40, size_px=200, repeats=1, work=tmp_path / "work")
    report = measure_gallery(request)
    assert report.cosine_min > 0.9999
    stages = {row.stage for row in report.rows}
    assert stages == {"decode + preprocess", "encoder", "target head", "encoder + UNION, fused", "end to end"}
    for row in report.rows:
        assert row.images_per_s > 0
        assert row.gallery_seconds["CIRCO"] == pytest.approx(PAPER_GALLERIES["CIRCO"] / row.images_per_s)
    write_report(report, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["machine"]["packages"]["torch"]
    assert "papers' way" in (tmp_path / "out" / "report.md").read_text()
    assert Image.open(tmp_path / "out" / "report.png").width > 800
