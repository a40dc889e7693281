"""How a vision-language embedder words its inputs: a JSON file of templates, Cirrus's own or a user's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Self

from pydantic import ValidationInfo, field_validator, model_validator

from cirrus_client.errors import ExportError
from cirrus_client.records import Record, parse_record

IMAGE, TEXT, INSTRUCTION = "{image}", "{text}", "{instruction}"
IMAGE_START = "<|vision_start|>"
_NEEDED = {"query": [IMAGE, TEXT], "text": [TEXT], "target": [IMAGE]}
_OPENING = re.compile(r"( +[^\s<>{}]*)?$")
_PLACE = re.compile(r"\{\w+\}")
_PARTS_TEXTS = re.compile(r"\w\s|<\|[^|<>\s]+\|>")
"""Behind this, a tokenizer cuts alike whatever the text before it is."""
_IMAGE_TOKEN = re.compile(r"<\|(image|video)_pad\|>")
_JSON = ".json"
_WAY_OUT = "docs/export-your-checkpoint.md says what a wording is"


class Wording(Record):
    """What a model reads for each task, special tokens spelled as in its tokenizer.

    query, text, target: templates for an image with a text, a text alone, and a gallery image. Without the second, a
    text alone is no query. `{image}` is where the image's tokens come, `{text}` the user's text, `{instruction}` the
    task's instruction. query_instruction, text_instruction, target_instruction: the published ones; without the second,
    a text alone has the query's. full_stop: put a full stop behind an instruction that ends without punctuation.
    counted_positions: count an image's tokens like words, also behind <|vision_start|>, as GME's own code does.
    """

    query: str
    text: str = ""
    target: str
    query_instruction: str = ""
    text_instruction: str = ""
    target_instruction: str = ""
    full_stop: bool = False
    counted_positions: bool = False

    @field_validator("query", "text", "target")
    @classmethod
    def _has_its_places(cls, template: str, field: ValidationInfo) -> str:
        needed = _NEEDED[str(field.field_name)]
        found = _PLACE.findall(template)
        others = [place for place in found if place != INSTRUCTION]
        too_late = TEXT in needed and found[-1:] == [INSTRUCTION]
        if others != needed or len(found) > len(needed) + 1 or too_late:
            raise ValueError(
                f"it must have {' and then '.join(needed)}, once each, and may have one {INSTRUCTION}"
                f"{f' before {TEXT}' if TEXT in needed else ''}"
            )
        if _IMAGE_TOKEN.search(template):
            raise ValueError(f"{IMAGE} stands for the image's tokens: leave <|image_pad|> and <|video_pad|> out")
        return template

    @model_validator(mode="after")
    def _one_tokenizer_reads_every_text(self) -> Self:
        if not self.text:
            return self
        (before, behind), (alone_before, alone_behind) = text_part(self.query), text_part(self.text)
        shared = behind[: shared_length(behind, alone_behind)]
        if before != alone_before or not (behind == alone_behind or _PARTS_TEXTS.search(shared)):
            raise ValueError(
                f"'query' and 'text' must have the same spaces before {TEXT}, and the same end behind it or ends that "
                "begin with the same word and a space, or the same special token"
            )
        return self

    @model_validator(mode="after")
    def _shows_every_image_alike(self) -> Self:
        if (IMAGE_START + IMAGE in self.query) != (IMAGE_START + IMAGE in self.target):
            raise ValueError(f"'query' and 'target' must both have {IMAGE_START} right before {IMAGE}, or neither")
        return self

    @property
    def grid_positions(self) -> bool:
        """True if an image's tokens have positions in rows and columns, False if they are counted like words.

        transformers 4, with which these models were trained, looks for images behind this token alone, and not at all
        where it is given embeddings instead of ids.
        """
        return not self.counted_positions and IMAGE_START + IMAGE in self.query

    def instructed(self, *, query: str = "", text: str = "", target: str = "") -> Wording:
        """Return this wording with other instructions; an empty one stays. White space around them is cut.

        Raises ExportError for an instruction for which its template has no place.
        """
        query = query or self.query_instruction
        text = text or self.text_instruction or (query if INSTRUCTION in self.text else "")
        said = {"query": query, "text": text, "target": target or self.target_instruction}
        return self.model_copy(update={f"{task}_instruction": self._said(task, words) for task, words in said.items()})

    def message(self, task: str) -> str:
        """Return the template "query", "text" or "target" with its instruction in place."""
        template, instruction = getattr(self, task), getattr(self, f"{task}_instruction")
        return str(template.replace(INSTRUCTION, instruction))

    def _said(self, task: str, instruction: str) -> str:
        said = instruction.strip()
        if said and INSTRUCTION not in getattr(self, task):
            raise ExportError(f"{task}_instruction {said!r}: the wording's '{task}' has no {INSTRUCTION} to put it at")
        if IMAGE in said or TEXT in said:
            raise ExportError(f"{task}_instruction {said!r}: {IMAGE} and {TEXT} belong into the wording")
        ends = not self.full_stop or not said or unicodedata.category(said[-1]).startswith("P")
        return said if ends else f"{said}."


def text_part(template: str) -> tuple[str, str]:
    """Return what is before a template's text from the last space on, and what comes behind the text.

    Tokenizers may join both to it. Before a space they cut.
    """
    before, _, behind = template.partition(TEXT)
    opening = _OPENING.search(before)
    assert opening is not None
    return opening[0], behind


def shared_length(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how many items two sequences have alike before the first that differs."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def wording_of(name: str, published: Sequence[str]) -> Wording:
    """Return the wording of that name, or without one the only `published` wording. Raises ExportError."""
    if not name and len(published) != 1:
        raise ExportError(
            "the embedding models on this backbone read images and words in different ways, and their files do not say "
            f"which it is: say --option wording={', '.join(published)}, or FILE.json; {_WAY_OUT}"
        )
    return find_wording(name or published[0])


def find_wording(name: str) -> Wording:
    """Return one of Cirrus's own wordings by its name, or a user's from FILE.json. Raises ExportError."""
    if name.endswith(_JSON):
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise ExportError(f"--option wording={name}: {error.strerror}") from None
        return parse_record(content, Wording, source=f"wording {name}", raises=ExportError, way_out=_WAY_OUT)
    folder = files("cirrus_export") / "wordings"
    known = sorted(entry.name.removesuffix(_JSON) for entry in folder.iterdir())
    if name not in known:
        raise ExportError(f"--option wording={name}: there is no such wording; known: {', '.join(known)}, or FILE.json")
    return Wording.model_validate_json((folder / f"{name}{_JSON}").read_bytes())
