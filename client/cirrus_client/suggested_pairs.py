"""Edit texts for many pairs of images: a file of pairs in, a file of captions out."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import ValidationError, model_validator
from tqdm import tqdm

from cirrus_client.errors import InvalidImage, OutputError, StoredDataError, UnreadableImage
from cirrus_client.files import write_atomically
from cirrus_client.outputs import only_writer
from cirrus_client.records import Record, parse_record
from cirrus_client.resuming import resumable
from cirrus_client.suggest import Suggester

_BEGINNING = b'{"reference":'
_WAY_OUT = 'each line is like {"reference": "a.jpg", "target": "b.jpg"}'


class Pair(Record):
    """Two images, by their paths relative to the file that names them, or absolute."""

    reference: str
    target: str


class Caption(Record):
    """A pair with its edit text, or with the reason why there is none."""

    reference: str
    target: str
    text: str | None = None
    error: str | None = None

    @model_validator(mode="after")
    def _has_an_outcome(self) -> Self:
        if self.text is None and self.error is None:
            raise ValueError("a pair without a text or an error is not written by a run")
        return self


class Captioned(NamedTuple):
    """How many pairs have a text now, how many of them had one before, and those that have none."""

    written: int
    before: int
    failed: tuple[Caption, ...]


def caption_pairs(pairs: Path, out: Path, suggester: Suggester, *, show_progress: bool = False) -> Captioned:
    """Write the edit text of every pair to `out`.

    pairs: JSON Lines of `Pair`. A pair that is named twice counts once. out: JSON Lines of `Caption`; texts that are
    there are kept, so that an interrupted run goes on where it was, and pairs that failed are tried again. An image
    that can't be read fails its pair alone.

    Raises StoredDataError for a line of `pairs` that is no pair, OutputError if `out` is something else or another
    process writes it, OSError if a file can't be read or written, and what else the suggester raises.
    """
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise OutputError(f"{out}: a run is resumed from it, so it is a plain file in a folder that exists", path=out)
    wanted = dict.fromkeys(_pairs(pairs))
    with only_writer(out.with_name(f".{out.name}.lock"), out):
        done = {Pair(reference=one.reference, target=one.target): one for one in _captions(out) if one.text is not None}
        kept = [done[pair] for pair in wanted if pair in done]
        write_atomically(out, b"".join(map(_encoded, kept)))
        failed = []
        missing = [pair for pair in wanted if pair not in done]
        with out.open("ab") as file, resumable() as keep:
            for pair in tqdm(missing, desc="edit texts", unit="pair", disable=not show_progress):
                caption = _captioned(pair, pairs.parent, suggester)
                file.write(_encoded(caption))
                file.flush()
                keep()
                if caption.error is not None:
                    failed.append(caption)
            os.fsync(file.fileno())
    return Captioned(len(wanted) - len(failed), len(kept), tuple(failed))


def _captioned(pair: Pair, folder: Path, suggester: Suggester) -> Caption:
    try:
        text = suggester.suggest(folder / pair.reference, folder / pair.target)
    except (InvalidImage, UnreadableImage) as error:
        return Caption(reference=pair.reference, target=pair.target, error=str(error))
    return Caption(reference=pair.reference, target=pair.target, text=text)


def _pairs(path: Path) -> Iterator[Pair]:
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if line.strip():
            source = f"{path}, line {number}"
            yield parse_record(line, Pair, source=source, raises=StoredDataError, way_out=_WAY_OUT)


def _captions(path: Path) -> Iterator[Caption]:
    """Yield what an earlier run wrote, but a line that was being written when that run was killed."""
    if not path.exists():
        return
    *lines, last = path.read_bytes().split(b"\n")
    if not _is_cut_off(last):
        lines.append(last)
    for number, line in enumerate(lines, start=1):
        try:
            yield Caption.model_validate_json(line)
        except ValidationError:
            raise OutputError(
                f"{path}: line {number} is no caption of a pair, so something else wrote it; name another --out",
                path=path,
            ) from None


def _is_cut_off(line: bytes) -> bool:
    """Return whether a line is the beginning of a caption's, and not a whole one."""
    try:
        json.loads(line)
    except ValueError:
        return _BEGINNING.startswith(line[: len(_BEGINNING)])
    return False


def _encoded(caption: Caption) -> bytes:
    return caption.model_dump_json(exclude_none=True).encode() + b"\n"
