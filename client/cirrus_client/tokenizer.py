"""Turn untrusted text into token ids. Triton runs this same code."""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

import ftfy
import numpy as np
import tokenizers
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cirrus_client.errors import InvalidText
from cirrus_client.records import GrownRecord, RelativePath

MAX_TEXT_CHARACTERS = 4096
_PLACE = "{text}"
_CAPTION_WORDS = 50
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextCleaning(StrEnum):
    """What happens to a text before `tokenizer.json` sees it.

    CLIP, WHITESPACE and CANONICALIZE are open_clip's "lower", "whitespace" and "canonicalize". All three repair broken
    Unicode (ftfy), unescape HTML twice and collapse white space. CLIP also lowers the case. CANONICALIZE lowers the
    case and removes ASCII punctuation (SigLIP). BLIP_CAPTION is LAVIS's evaluation processor of that name: it lowers
    the case, turns punctuation into spaces and keeps 50 words. NFC, SIGLIP and SIGLIP2 are what Hugging Face's
    tokenizers do. CLIP's composes Unicode, collapses white space and lowers the case; SigLIP's lowers the case, removes
    ASCII punctuation and collapses white space; SigLIP 2's lowers the case. NONE leaves the text to the file's own
    rules (BERT).
    """

    CLIP = "clip"
    WHITESPACE = "whitespace"
    CANONICALIZE = "canonicalize"
    SIGLIP = "siglip"
    SIGLIP2 = "siglip2"
    BLIP_CAPTION = "blip_caption"
    NFC = "nfc"
    NONE = "none"


class TokenizerSpec(GrownRecord):
    """How a text becomes token ids: [start] content [end] [suffix ...] [pad ...].

    file: a Hugging Face `tokenizer.json` inside the bundle. start_id, end_id: None where the model has no such token.
    suffix_ids: the rest of a prompt behind the text, which no length of a text can cut off. cut_ids: the last ids of a
    text that is cut, where the template has words behind the text.
    template: the prompt, in which `{text}` is the text. null_text: the prompt of a text that is absent, or blank once
    it is cleaned. cut_lengths: lengths under the context's, ascending, to which a batch may be cut, because the model
    does not read padding; see `cut`.
    """

    later_fields: ClassVar[frozenset[str]] = frozenset({"cut_ids"})

    file: RelativePath = "tokenizer.json"
    context_length: int = Field(default=77, gt=2)
    start_id: int | None
    end_id: int | None
    suffix_ids: tuple[int, ...] = ()
    cut_ids: tuple[int, ...] = ()
    pad_id: int = 0
    cleaning: TextCleaning = TextCleaning.CLIP
    template: str = _PLACE
    null_text: str = ""
    cut_lengths: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _leaves_room_for_a_text(self) -> Self:
        ending = len(self.suffix_ids) + len(self.cut_ids)
        if ending + 2 >= self.context_length:
            raise ValueError(f"suffix_ids and cut_ids have {ending} of {self.context_length} tokens: no text fits")
        return self

    @model_validator(mode="after")
    def _cuts_ascend(self) -> Self:
        lengths = (0, *self.cut_lengths, self.context_length)
        if any(shorter >= longer for shorter, longer in pairwise(lengths)):
            raise ValueError(f"cut_lengths {list(self.cut_lengths)} must ascend, from 1 to under {self.context_length}")
        return self

    def cut(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the token ids of a batch without the padding that none of its texts needs.

        token_ids: int64 [B, T] for the full context. The answer's length is the smallest of `cut_lengths` that holds
        the longest text, or T.
        """
        if not self.cut_lengths:
            return token_ids
        used = np.flatnonzero((token_ids != self.pad_id).any(axis=0))
        needed = int(used[-1]) + 1 if len(used) else 0
        return token_ids[:, : next((length for length in self.cut_lengths if length >= needed), None)]

    def prompt(self, text: str) -> str:
        """Return the cleaned text inside the prompt that the model was trained with.

        Raises InvalidText if the text has more than MAX_TEXT_CHARACTERS characters, or lone surrogates.
        """
        _check(text)
        clean = _CLEANERS[self.cleaning]
        cleaned = clean(text)
        if not cleaned.strip():
            return clean(self.null_text)
        return cleaned if self.template == _PLACE else clean(self.template.replace(_PLACE, text))


class Tokenizer:
    """Turns texts into token ids with the `tokenizers` library. Threads may share one.

    A text that is longer than the context is cut and still ends in the end token, as `clip.tokenize(truncate=True)`
    and Hugging Face's `truncation=True` do: so TransAgg, UNION and SPRC. The evaluations of SEARLE, LinCIR,
    Pic2Word and Retrieval-DPO call `clip.tokenize` without it, which raises an error. A special token's spelling in
    a text, like "<end_of_text>" or "[SEP]", is text: OpenAI's, open_clip's and Hugging Face's tokenizers take it as
    the token itself, which would let a text end early.
    """

    def __init__(self, spec: TokenizerSpec, root: Path) -> None:
        """root: the folder of `spec.file`."""
        self.spec = spec
        self._tokenizer = tokenizers.Tokenizer.from_file(str(root / spec.file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # as text
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special} | {
            token_id for token_id in (spec.start_id, spec.end_id) if token_id is not None
        }
        self._special = {token_id: _plain(self._tokenizer.id_to_token(token_id) or "") for token_id in special}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return token ids, int64 [B, T], padded with `pad_id`. Raises InvalidText as `TokenizerSpec.prompt` does."""
        spec = self.spec
        start = [] if spec.start_id is None else [spec.start_id]
        end = [*([] if spec.end_id is None else [spec.end_id]), *spec.suffix_ids]
        room = spec.context_length - len(start) - len(end)
        token_ids = np.full((len(texts), spec.context_length), spec.pad_id, dtype=np.int64)
        for row, text in zip(token_ids, texts, strict=True):
            content = self._ids(spec.prompt(text))
            if len(content) > room:
                content = [*content[: room - len(spec.cut_ids)], *spec.cut_ids]
            ids = [*start, *content, *end]
            row[: len(ids)] = ids
        return token_ids

    def _ids(self, text: str) -> list[int]:
        """Return the ids of a text, none of them special.

        A model without merges (Unigram) has the special tokens among its pieces and would still find them in a text, so
        the text is cut within their spelling.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        cuts = [
            start + 1
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if end - start > 1 and self._special.get(token_id) == _plain(text[start:end])
        ]
        if not cuts:
            return list(encoding.ids)
        return [token_id for start, end in pairwise((0, *cuts, len(text))) for token_id in self._ids(text[start:end])]


def _plain(token: str) -> str:
    """Return the spelling of a token without what tokenizers normalise away."""
    return unicodedata.normalize("NFKC", token).strip().casefold()


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


def _whitespace(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _clip(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    """Clean as `canonicalize_text` of google-research/big_vision does, after open_clip's `basic_clean`."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = text.replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())


def _siglip(text: str) -> str:
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _lowered(text: str) -> str:
    return "".join(map(str.lower, text))  # one by one: a final sigma is no other letter


def _blip_caption(text: str) -> str:
    text = re.sub(r"([.!\"()*#:;~])", " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).strip()
    return " ".join(text.split(" ")[:_CAPTION_WORDS])


def _nfc(text: str) -> str:
    return _lowered(" ".join(unicodedata.normalize("NFC", text).split()))


def _unchanged(text: str) -> str:
    return text


_CLEANERS = {
    TextCleaning.CLIP: _clip,
    TextCleaning.WHITESPACE: _whitespace,
    TextCleaning.CANONICALIZE: _canonicalize,
    TextCleaning.SIGLIP: _siglip,
    TextCleaning.SIGLIP2: _lowered,
    TextCleaning.BLIP_CAPTION: _blip_caption,
    TextCleaning.NFC: _nfc,
    TextCleaning.NONE: _unchanged,
}
