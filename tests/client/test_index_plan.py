"""The plan of an index: memory is what FAISS stores, times grow as the work does, and what does not fit says so."""

from __future__ import annotations

from pathlib import Path

import faiss
import pytest
from typer.testing import CliRunner

from cirrus_bench.indexes import IndexBenchReport
from cirrus_client.cli.app import app
from cirrus_client.index import BuildOptions, SearchKind, Storage
from cirrus_client.index.faiss_build import build_faiss
from cirrus_client.index.faiss_kinds import KINDS
from cirrus_client.index.figures import measured_figures
from cirrus_client.index.plan import plan, recommended
from cirrus_client.index.vectors import GalleryVectors
from tests.bench.test_reports import committed
from tests.client.test_index import space, unit_rows, write_gallery

_GIB = 2**30


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SearchKind))
@pytest.mark.parametrize("storage", list(Storage))
def test_planned_memory_is_what_faiss_writes(tmp_path: Path, kind: SearchKind, storage: Storage) -> None:
    rows, dim = 6000, 96
    vectors = GalleryVectors.in_memory(space(dim), unit_rows(0, rows, dim))
    file = tmp_path / "index.faiss"
    faiss.write_index(build_faiss(vectors, BuildOptions(kind, storage))[0], str(file))
    exact_on_disk = rows * dim * (4 if storage is Storage.FLOAT32 else 2) if kind is SearchKind.RABITQ else 0
    planned = KINDS[kind].memory_bytes(rows, dim, storage)
    assert planned == pytest.approx(file.stat().st_size - exact_on_disk, rel=0.05)


def test_every_kind_was_measured_with_one_vector_and_with_several() -> None:
    measured = {(row.kind, row.vectors > 1) for row in measured_figures().rows}
    assert measured == {(kind, several) for kind in SearchKind for several in (False, True)}


def test_the_figures_are_those_of_the_committed_report() -> None:
    assert measured_figures().rows == committed(IndexBenchReport).rows


def test_the_measured_gallery_is_planned_as_it_was_measured() -> None:
    for row in measured_figures().rows:
        planned = next(
            one
            for one in plan(row.images, space(row.dim, row.vectors))
            if (one.kind, one.storage) == (row.kind, row.storage)
        )
        assert (planned.build_s, planned.one_query_ms) == pytest.approx((row.build_s, row.one_query_ms))
        if row.kind is SearchKind.EXACT and row.images >= 1_000_000:
            assert planned.memory_bytes == pytest.approx(row.own_bytes + row.mapped_bytes, rel=0.15)


def test_what_does_not_fit_is_not_recommended() -> None:
    planned = plan(100_000_000, space(512), 64 * _GIB)
    fitting = {one.kind for one in planned if one.fits}
    assert fitting == {SearchKind.RABITQ}
    best = recommended(planned)
    assert best is not None
    assert best.kind is SearchKind.RABITQ
    assert recommended(plan(100_000_000, space(512), _GIB)) is None
    small = recommended(plan(10_000, space(512)))
    assert small is not None
    assert (small.kind, small.storage) == (SearchKind.EXACT, Storage.FLOAT32)
    several = recommended(plan(100_000, space(256, 32)))
    assert several is not None
    assert several.kind is SearchKind.RABITQ, "exact search takes 124 ms there, and a graph finds 85%"


def test_a_gallery_ten_times_as_large_takes_the_time_that_the_work_grows_by() -> None:
    measured = {(row.kind, row.storage): row for row in measured_figures().rows if row.images == 1_000_000}
    grown = {
        SearchKind.EXACT: (10, 10),
        SearchKind.APPROXIMATE: (10**1.5, 10**0.5),
        SearchKind.HNSW: (10, 7 / 6),
        SearchKind.RABITQ: (10**1.5, 10**0.5),
    }
    planned = plan(10_000_000, space(512))
    assert {(one.kind, one.storage) for one in planned} == set(measured)
    for one in planned:
        row, (build, query) = measured[one.kind, one.storage], grown[one.kind]
        assert (one.build_s, one.one_query_ms) == pytest.approx((build * row.build_s, query * row.one_query_ms))


def test_the_command_prints_a_plan_and_builds_nothing(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", space(8), unit_rows(0, 30, 8), shard_size=10)
    printed = CliRunner().invoke(app, ["index", str(tmp_path / "gallery"), "--plan", "--memory", "1GiB"])
    assert printed.exit_code == 0
    lines = printed.stdout.splitlines()
    assert lines[0].startswith("30 images, width 8")
    assert {line.split()[0] for line in lines[2:-2]} == set(SearchKind)
    assert lines[-2].endswith("gallery --out INDEX --kind exact")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery"]
    for memory in ("much", "8"):
        refused = CliRunner().invoke(app, ["index", str(tmp_path / "gallery"), "--plan", "--memory", memory])
        assert refused.exit_code == 2
        assert f"'{memory}' is no amount of memory" in refused.stderr
    missing = CliRunner().invoke(app, ["index", str(tmp_path / "gallery")])
    assert missing.exit_code == 2
    assert "--out" in missing.stderr
