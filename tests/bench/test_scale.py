"""The bench of a Ray cluster measures, and the page of scale computes what the committed reports say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cirrus_bench.gallery.report import GalleryReport
from cirrus_bench.scale import ScaleReport, measure_scale
from tests.bench.test_reports import committed

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
TITLES = {
    "fp32": "**Cirrus, fp32**",
    "bf16": "**Cirrus, bf16**",
    "int8": "**Cirrus, int8**",
    "int8, `--decode fast`": "**Cirrus, int8**, `--decode fast`",
    "a new head on cached features": "**Cirrus, new head on cached features**",
}
BENCHMARKS = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()


@pytest.mark.slow
def test_every_number_of_workers_is_measured(tiny_bundle, tmp_path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    report = measure_scale(tiny_bundle, tmp_path, images=64, size_px=64, rounds=1, workers=(1, 2))
    assert [row.workers for row in report.rows] == [1, 2]
    assert all(rate > 0 for row in report.rows for rate in row.images_per_s)
    assert report.efficiency(report.rows[0]) == 1.0
    assert f"| 2 | {report.rows[1].median:.2f} |" in report.markdown()


def test_the_page_has_the_committed_efficiency() -> None:
    report = committed(ScaleReport)
    rows = [f"| {row.workers} | {row.median:.2f} | {report.efficiency(row):.0%} |" for row in report.rows]
    assert "\n".join(rows) in PAGE
    workers = report.committed_per_s / report.rows[0].median
    assert f"commits {report.committed_per_s:,.0f} images/s, so it is the limit from about {workers:,.0f}" in PAGE


def test_the_page_computes_time_and_core_hours_from_the_measured_rates() -> None:
    cores = committed(GalleryReport).machine.cores
    rows = re.findall(r"^\| (.+?) \| ([\d.,]+) \| ([\d.,]+) \| ([\d.,]+) \| ([\d.,]+) \|$", PAGE, re.MULTILINE)
    assert {name for name, *_ in rows} == set(TITLES)
    for name, *figures in rows:
        rate, hours, per_million, per_billion = (float(figure.replace(",", "")) for figure in figures)
        assert f"| {TITLES[name]} | {figures[0]} |" in BENCHMARKS
        assert hours == pytest.approx(1e6 / rate / 3600, abs=0.05)
        assert per_million == pytest.approx(cores * 1e6 / rate / 3600, abs=0.05)
        assert per_billion == pytest.approx(cores * 1e9 / rate / 3600, abs=50)
