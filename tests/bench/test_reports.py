"""The committed reports: the Markdown is what the JSON says."""

from __future__ import annotations

from pathlib import Path

import pytest

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
from tests.torture.report import TortureReport

COMMITTED = Path(__file__).parents[2] / "bench" / "reports"
REPORTS = (
    *(FullSizeReport, GalleryReport, IndexBenchReport, PrecisionReport, QueryReport, RetrievalReport, ScaleReport),
    *(SearchReport, ServiceReport, ServicePeersReport),
    TortureReport,
)


def committed(kind: type[Report]) -> Report:
    return kind.model_validate_json((COMMITTED / f"{kind.file_name}.json").read_bytes())


@pytest.mark.parametrize("kind", REPORTS)
def test_a_committed_page_is_rendered_from_its_json(kind: type[Report]) -> None:
    assert committed(kind).markdown() == (COMMITTED / f"{kind.file_name}.md").read_text()


def test_every_committed_report_is_read() -> None:
    assert {path.stem for path in COMMITTED.glob("*.json")} == {kind.file_name for kind in REPORTS}
