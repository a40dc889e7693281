"""The committed reports: the Markdown is what the JSON says. Where one has no place, nothing is measured."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pytest
from typer.testing import CliRunner

from cirrus_bench import search
from cirrus_bench.full_size import FullSizeReport
from cirrus_bench.gallery.report import GalleryReport
from cirrus_bench.indexes import IndexBenchReport
from cirrus_bench.precisions import PrecisionReport
from cirrus_bench.queries import QueryReport
from cirrus_bench.report import Report
from cirrus_bench.retrieval.report import RetrievalReport
from cirrus_bench.scale import ScaleReport
from cirrus_bench.search import SearchReport
from cirrus_bench.service.report import ServiceReport
from cirrus_bench.service_peers.report import ServicePeersReport
from cirrus_client.cli.app import app
from tests.torture.report import TortureReport

COMMITTED = Path(__file__).parents[2] / "bench" / "reports"
REPORTS = (
    *(FullSizeReport, GalleryReport, IndexBenchReport, PrecisionReport, QueryReport, RetrievalReport, ScaleReport),
    *(SearchReport, ServiceReport, ServicePeersReport),
    TortureReport,
)


R = TypeVar("R", bound=Report)
KINDS = {kind.file_name: kind for kind in REPORTS} | {"service_amd": ServiceReport}  # of a second machine


def committed(kind: type[R], name: str | None = None) -> R:
    return kind.model_validate_json((COMMITTED / f"{name or kind.file_name}.json").read_bytes())


@pytest.mark.parametrize("name", KINDS)
def test_a_committed_page_is_rendered_from_its_json(name: str) -> None:
    assert committed(KINDS[name], name).markdown() == (COMMITTED / f"{name}.md").read_text()


@pytest.mark.parametrize(
    ("kind", "who"),
    [
        (GalleryReport, "PyTorch, the baseline included,"),
        (SearchReport, "Bare FAISS"),
        (ServicePeersReport, "infinity"),
    ],
)
def test_what_ran_on_the_cpu_beside_a_gpu_is_told(kind: type[Report], who: str) -> None:
    report = committed(kind)
    machine = report.machine.model_copy(update={"gpu": "NVIDIA H200"})
    told = f"\n\n**{who} ran on the CPU**, and Cirrus on the GPU where its engine does: ratios compare the two.\n\n"
    assert told in report.model_copy(update={"machine": machine}).markdown()
    assert "ran on the CPU" not in report.markdown()


def test_every_committed_report_is_read() -> None:
    assert {path.stem for path in COMMITTED.glob("*.json")} == set(KINDS)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search, "measure_search", lambda **options: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["bench", "search", "--out", str(tmp_path / "file")])
    assert done.exit_code == 1
    assert str(tmp_path / "file") in done.stderr
