"""From untrusted text to token ids: the one implementation, also run inside Triton."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cirrus_client.errors import InvalidText

MAX_TEXT_CHARACTERS = 4096


class TokenizerSpec(BaseModel):
    """How a text becomes token ids. `file` is a Hugging Face `tokenizer.json` inside the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = "tokenizer.json"
    context_length: int = Field(default=77, gt=2)
    start_id: int
    end_id: int
    pad_id: int = 0


class Tokenizer:
    """CLIP's byte-pair tokenizer on the `tokenizers` library: the ids of `open_clip.SimpleTokenizer`.

    A text longer than the context is cut and closed with the end token, as `clip.tokenize(truncate=True)` does in
    the released evaluation code.
    """

    def __init__(self, spec: TokenizerSpec, root: Path) -> None:
        self.spec = spec
        self._tokenizer = tokenizers.Tokenizer.from_file(str(root / spec.file))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return int64 [B, T] token ids, padded with `pad_id`. Raises InvalidText over the length limit."""
        spec = self.spec
        token_ids = np.full((len(texts), spec.context_length), spec.pad_id, dtype=np.int64)
        encodings = self._tokenizer.encode_batch([clean(text) for text in texts], add_special_tokens=False)
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


def clean(text: str) -> str:
    """Repair, unescape, collapse white space and lower-case, as CLIP's tokenizer does before its merges.

    Raises InvalidText if the text has more than MAX_TEXT_CHARACTERS characters, or lone surrogates.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidText(f"the text has {len(text):,} characters, the limit is {MAX_TEXT_CHARACTERS:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(f"the text is not valid Unicode: {error.reason} at character {error.start}") from None
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
