"""Many pairs of images: whatever happens, each has one text, and nothing that was written is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cirrus_client.errors import OutputError, ServerUnavailable, StoredDataError
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.image.preprocess import PreprocessSpec, preprocess
from cirrus_client.resuming import is_resumable
from cirrus_client.suggested_pairs import caption_pairs
from tests.conftest import jpeg


class Sizes:
    """Words a pair by the sizes of its files, and counts. An image that is none is refused as a suggester does."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked = 0
        self._fails_at = fails_at

    def suggest(self, reference: ImageInput, target: ImageInput) -> str:
        if self.asked == self._fails_at:
            raise ServerUnavailable("the server has gone")
        self.asked += 1
        for image in (reference, target):
            preprocess(image_bytes(image), PreprocessSpec(size_px=8))
        return f"from {len(image_bytes(reference))} to {len(image_bytes(target))}"


@pytest.fixture
def pairs(tmp_path) -> Path:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg("teal", (10 + number, 20)))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    names = [("0.jpg", "1.jpg"), ("1.jpg", "0.jpg"), ("2.jpg", "broken.jpg"), ("3.jpg", "gone.jpg"), ("4.jpg", "5.jpg")]
    lines = [json.dumps({"reference": reference, "target": target}) for reference, target in names]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines, "", lines[0]]))
    return tmp_path / "pairs.jsonl"


def texts(out: Path) -> dict[tuple[str, str], str | None]:
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = {(line["reference"], line["target"]): line.get("text") for line in lines}
    assert len(found) == len(lines), "a pair is there twice"
    return found


def test_every_pair_has_its_text_and_a_bad_one_its_reason(pairs, tmp_path) -> None:
    found = caption_pairs(pairs, tmp_path / "out.jsonl", Sizes())
    assert (found.written, found.before) == (3, 0)
    reasons = {failed.target: failed.error for failed in found.failed}
    assert reasons.keys() == {"broken.jpg", "gone.jpg"}
    assert "gone.jpg" in reasons["gone.jpg"]
    written = texts(tmp_path / "out.jsonl")
    sizes = [(tmp_path / name).stat().st_size for name in ("0.jpg", "1.jpg")]
    assert written["0.jpg", "1.jpg"] == f"from {sizes[0]} to {sizes[1]}"
    assert written["1.jpg", "0.jpg"] == f"from {sizes[1]} to {sizes[0]}"
    assert written["2.jpg", "broken.jpg"] is None


def test_a_text_is_in_the_file_before_the_next_one_is_asked_for(pairs, tmp_path) -> None:
    """A run that is killed loses the one text that it was making."""
    out, there = tmp_path / "out.jsonl", []

    class Looking(Sizes):
        def suggest(self, reference: ImageInput, target: ImageInput) -> str:
            there.append(len(out.read_bytes().splitlines()))
            return super().suggest(reference, target)

    caption_pairs(pairs, out, Looking())
    assert there == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
def test_a_run_that_ended_early_goes_on_and_what_failed_is_tried_again(pairs, tmp_path, fails_at) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(ServerUnavailable) as ended:
        caption_pairs(pairs, out, Sizes(fails_at))
    assert is_resumable(ended.value) == (fails_at > 0)
    with out.open("ab") as file:
        file.write(b'{"reference": "4.jp')  # killed while it wrote
    had = sum(text is not None for text in texts_of_whole_lines(out))
    (tmp_path / "gone.jpg").write_bytes(jpeg("red"))
    again = Sizes()
    found = caption_pairs(pairs, out, again)
    assert (found.written, found.before, again.asked) == (4, had, 5 - had)
    assert sum(text is not None for text in texts(out).values()) == 4
    assert caption_pairs(pairs, out, Sizes()).before == 4


def texts_of_whole_lines(out: Path) -> list[str | None]:
    return [json.loads(line).get("text") for line in out.read_bytes().split(b"\n")[:-1]]


def test_a_file_of_something_else_is_neither_read_nor_replaced(pairs, tmp_path) -> None:
    pairs.write_text(pairs.read_text() + '\n{"reference": "0.jpg"}\n')
    with pytest.raises(StoredDataError, match=r"pairs\.jsonl, line 8: field 'target'.*each line is like"):
        caption_pairs(pairs, tmp_path / "out.jsonl", Sizes())
    pairs.write_text("")
    (tmp_path / "notes.txt").write_text("dear diary\n")
    with pytest.raises(OutputError, match=r"notes\.txt: line 1 is no caption"):
        caption_pairs(pairs, tmp_path / "notes.txt", Sizes())
    assert (tmp_path / "notes.txt").read_text() == "dear diary\n"


@pytest.mark.parametrize("content", ["dear diary", '{"reference":"0.jpg","target":"1.jpg"}', '{"key": 1}', "[1]\n"])
def test_a_file_that_no_run_wrote_is_never_replaced_whatever_it_ends_with(pairs, tmp_path, content) -> None:
    (tmp_path / "notes").write_text(content)
    with pytest.raises(OutputError, match=r"notes: line 1 is no caption"):
        caption_pairs(pairs, tmp_path / "notes", Sizes())
    assert (tmp_path / "notes").read_text() == content


def test_the_file_of_pairs_is_not_replaced_by_their_texts(pairs) -> None:
    before = pairs.read_text()
    with pytest.raises(OutputError, match=r"pairs\.jsonl: line 1 is no caption"):
        caption_pairs(pairs, pairs, Sizes())
    assert pairs.read_text() == before


def test_a_file_of_pairs_may_begin_with_a_byte_order_mark(pairs, tmp_path) -> None:
    pairs.write_text(pairs.read_text(), encoding="utf-8-sig")
    assert caption_pairs(pairs, tmp_path / "out.jsonl", Sizes()).written == 3


@pytest.mark.parametrize("place", ["", "folder", "gone/captions.jsonl", "pipe"])
def test_texts_are_written_to_a_plain_file_alone(pairs, tmp_path, monkeypatch, place) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")  # reading it would wait for ever, as reading /dev/stdout does
    with pytest.raises(OutputError, match="it is a plain file in a folder that exists"):
        caption_pairs(pairs, Path(place), Sizes())
