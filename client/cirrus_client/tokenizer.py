"""From untrusted text to token ids: the one implementation, also run inside Triton."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from numpy.typing import NDArray
from pydantic import Field

from cirrus_client.errors import InvalidText
from cirrus_client.records import Record

MAX_TEXT_CHARACTERS = 4096


_PLACE = "{text}"
_CAPTION_WORDS = 50


class TextCleaning(StrEnum):
    """What happens to a text before `tokenizer.json` sees it.

    CLIP: repaired, unescaped, white space collapsed, lower-cased. BLIP_CAPTION: LAVIS's `blip_caption` evaluation
    processor, which turns punctuation into spaces and keeps 50 words. NONE: BERT's, whose rules are in the file.
    """

    CLIP = "clip"
    BLIP_CAPTION = "blip_caption"
    NONE = "none"


class TokenizerSpec(Record):
    """How a text becomes token ids. `file` is a Hugging Face `tokenizer.json` inside the bundle.

    template: the prompt, in which `{text}` is the text. null_text: the prompt of an absent or blank text.
    """

    file: str = "tokenizer.json"
    context_length: int = Field(default=77, gt=2)
    start_id: int
    end_id: int
    pad_id: int = 0
    cleaning: TextCleaning = TextCleaning.CLIP
    template: str = _PLACE
    null_text: str = ""

    def prompt(self, text: str) -> str:
        """Return the text within the prompt that the model was trained on, cleaned.

        Raises InvalidText if the text has more than MAX_TEXT_CHARACTERS characters, or lone surrogates.
        """
        _check(text)
        prompt = self.template.replace(_PLACE, text) if text.strip() else self.null_text
        return _CLEANERS[self.cleaning](prompt)


class Tokenizer:
    """Texts to token ids on the `tokenizers` library: the ids of CLIP's and BERT's own tokenizers.

    A text longer than the context is cut and closed with the end token, as `clip.tokenize(truncate=True)` and
    `BertTokenizer(truncation=True)` do in the released evaluation code.
    """

    def __init__(self, spec: TokenizerSpec, root: Path) -> None:
        self.spec = spec
        self._tokenizer = tokenizers.Tokenizer.from_file(str(root / spec.file))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return int64 [B, T] token ids, padded with `pad_id`. Raises InvalidText over the length limit."""
        spec = self.spec
        token_ids = np.full((len(texts), spec.context_length), spec.pad_id, dtype=np.int64)
        encodings = self._tokenizer.encode_batch([spec.prompt(text) for text in texts], add_special_tokens=False)
        for row, encoding in zip(token_ids, encodings, strict=True):
            content = encoding.ids[: spec.context_length - 2]
            row[: len(content) + 2] = [spec.start_id, *content, spec.end_id]
        return token_ids


def decode_text(text: bytes) -> str:
    """Return the text of UTF-8 bytes. Raises InvalidText if they are not UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidText(f"the text is not UTF-8: {error.reason} at byte {error.start}") from None


def _check(text: str) -> None:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidText(f"the text has {len(text):,} characters, the limit is {MAX_TEXT_CHARACTERS:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(f"the text is not valid Unicode: {error.reason} at character {error.start}") from None


def _clip_clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _blip_caption(text: str) -> str:
    text = re.sub(r"([.!\"()*#:;~])", " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).strip()
    return " ".join(text.split(" ")[:_CAPTION_WORDS])


def _unchanged(text: str) -> str:
    return text


_CLEANERS = {
    TextCleaning.CLIP: _clip_clean,
    TextCleaning.BLIP_CAPTION: _blip_caption,
    TextCleaning.NONE: _unchanged,
}
