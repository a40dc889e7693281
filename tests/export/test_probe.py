"""A user's own probe, and what can be wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cirrus_client.errors import ExportError
from cirrus_export.gate.probe import FEWEST_IMAGES, default_probe, read_probe
from cirrus_export.pipeline import ExportRequest, export
from tests.conftest import jpeg

ENTRY = {"target": "b", "candidate": "a", "captions": ["is blue", "has stripes."]}


def write(root: Path, captions: object, split: object) -> Path:
    for folder in ("captions", "image_splits", "images"):
        (root / folder).mkdir()
    (root / "captions" / "cap.dress.val.json").write_text(json.dumps(captions))
    (root / "image_splits" / "split.dress.val.json").write_text(json.dumps(split))
    for name in "abc":
        (root / "images" / f"{name}.jpg").write_bytes(jpeg())
    return root


def test_queries_and_their_targets_are_read_with_whatever_else_an_entry_has(tmp_path) -> None:
    probe = read_probe(write(tmp_path, [ENTRY | {"id": 7}], ["a", "b", "c"]), queries=4, gallery=3)
    assert [(query.text, query.target) for query in probe.queries] == [("Is blue and has stripes", 0)]
    assert len(probe.gallery) == 3


@pytest.mark.parametrize(
    ("captions", "split", "file", "reason"),
    [
        ([ENTRY | {"captions": ["is blue"]}], ["a"], "cap.dress.val.json", "field '0.captions.1': Field required"),
        ([{"candidate": "a", "captions": ["", ""]}], ["a"], "cap.dress.val.json", "field '0.target': Field required"),
        ({"a": ENTRY}, ["a"], "cap.dress.val.json", "Input should be a valid (list|array)"),
        ([ENTRY], ["a", 1], "split.dress.val.json", "field '1': Input should be a valid string, found 1"),
    ],
)
def test_a_file_of_another_form_is_refused_by_its_name(captions, split, file, reason, tmp_path) -> None:
    with pytest.raises(ExportError, match=rf"probe file .*{file}: .*{reason}.*; captions are like \["):
        read_probe(write(tmp_path, captions, split), queries=4, gallery=3)


def test_a_gallery_that_is_all_in_a_top_ten_says_nothing_of_rankings(tmp_path) -> None:
    probe = default_probe(queries=2, gallery=FEWEST_IMAGES)
    small = replace(probe, gallery=probe.gallery[:10])
    with pytest.raises(ExportError, match="its gallery has 10 images, and the gate compares top tens"):
        export(ExportRequest("clip", "ViT-B-32", "random", None, tmp_path / "out"), small)
