"""Full-size exports: rows of an interrupted run are kept for the run that goes on, and for no later one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cirrus_bench import full_size
from cirrus_bench.full_size import FullSizeRow, export_full_sizes
from cirrus_client.errors import ExportError

SIZES = (("clip", "ViT-B-32"), ("clip", "ViT-L-14"))


def test_rows_are_kept_for_the_run_that_goes_on_and_for_no_later_one(tmp_path: Path, monkeypatch) -> None:
    exported: list[str] = []

    def export(recipe: str, backbone: str, out: Path) -> FullSizeRow:
        """Stand for an export, of which the second of the first run is interrupted."""
        exported.append(backbone)
        if len(exported) == 2:
            raise ExportError("interrupted")
        figures = {"peak_bytes": 1, "disk_bytes": 1, "cosine_min": 1, "top10_agreement": 1, "compile_seconds": None}
        return FullSizeRow(recipe=recipe, backbone=backbone, seconds=len(exported), **figures)

    monkeypatch.setattr(full_size, "_export", export)
    with pytest.raises(ExportError, match="interrupted"):
        export_full_sizes(tmp_path, SIZES)
    assert [row.seconds for row in export_full_sizes(tmp_path, SIZES).rows] == [1, 3]
    assert [row.seconds for row in export_full_sizes(tmp_path, SIZES).rows] == [4, 5], "they were the older run's"
