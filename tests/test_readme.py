"""What the README shows works, and its figures are those of the benchmarks page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_figure_is_on_the_benchmarks_page() -> None:
    """That page is compared with the committed reports."""
    rows = [line for line in README.splitlines() if re.match(r"\| .*\d", line)]
    assert len(rows) > 4
    known = (ROOT / "docs" / "benchmarks.md").read_text().splitlines()
    assert [row for row in rows if row not in known] == []


def test_the_search_in_python_prints_the_best_five(
    tiny_bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "union").symlink_to(tiny_bundle.root)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, picture in enumerate(sorted(pictures.iterdir())):
        (photos / f"{number:06d}.jpg").symlink_to(picture)
    embed_gallery(photos, tmp_path / "gallery", LocalEncoder(tiny_bundle))
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "build" / "index")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["1", "2", "3", "4", "5"]
    assert all(re.fullmatch(r"\d \d{6}\.jpg -?\d\.\d+", line) for line in printed)
