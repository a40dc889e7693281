"""Tokenizers that open_clip fetches from the Hugging Face hub, and how their models were trained to use them."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from cirrus_client.errors import ExportError
from cirrus_client.tokenizer import TextCleaning, TokenizerSpec
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.backbones.hub import check_hub_answers

FILE = "tokenizer.json"
_CLEANINGS = {
    "lower": TextCleaning.CLIP,
    "whitespace": TextCleaning.WHITESPACE,
    "canonicalize": TextCleaning.CANONICALIZE,
}


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens around a text, by their spelling in the vocabulary. start: None where a text has none.

    of_transformers: how transformers' own tokenizer of these models cleans a text.
    """

    start: str | None
    end: str
    pad: str
    of_transformers: TextCleaning | None = None


SPECIAL_TOKENS = {
    "timm/*-SigLIP2*": SpecialTokens(start=None, end="<eos>", pad="<pad>", of_transformers=TextCleaning.SIGLIP2),
    "timm/*-SigLIP*": SpecialTokens(start=None, end="</s>", pad="</s>", of_transformers=TextCleaning.SIGLIP),
    "google/mt5-*": SpecialTokens(start=None, end="</s>", pad="<pad>", of_transformers=TextCleaning.NONE),
    "facebook/xlm-v-base": SpecialTokens(start="<s>", end="</s>", pad="<pad>", of_transformers=TextCleaning.NONE),
    # CLIPA: open_clip's strip_sep_token replaces the end token, [SEP], by 0, the padding
    "bert-base-uncased": SpecialTokens(start="[CLS]", end="[PAD]", pad="[PAD]"),
}
"""Tokenizers by their name on the hub, the first pattern that fits.

SigLIP ends and pads with the same token, SigLIP 2 (Gemma's vocabulary) does not: open_clip's `SigLipTokenizer`.
"""


@dataclass(frozen=True)
class HubTokenizer:
    """A `tokenizer.json`, the special tokens' ids, and the cleaning before it."""

    file: Path
    start_id: int | None
    end_id: int
    pad_id: int
    cleaning: TextCleaning

    def write(self, root: Path, *, context_length: int, prompt: Prompt) -> TokenizerSpec:
        """Copy the file into root and return how to use it."""
        spec = prompt.spec(
            context_length=context_length,
            start_id=self.start_id,
            end_id=self.end_id,
            pad_id=self.pad_id,
            cleaning=self.cleaning,
        )
        shutil.copyfile(self.file, root / spec.file)
        return spec


def find_hub_tokenizer(
    model: str, text_config: Mapping[str, Any], file: Path | None, *, of_transformers: bool = False
) -> HubTokenizer:
    """Return the tokenizer of a model of open_clip, from a file or from the hub.

    text_config: the model's `text_cfg`. file: its `tokenizer.json`, or None to look in the hub's cache and on the hub.
    of_transformers: clean texts as transformers does, where it does so otherwise than open_clip.

    Raises ExportError if it can't be fetched, or is another model's.
    """
    name = text_config["hf_tokenizer_name"]
    tokens = next((known for pattern, known in SPECIAL_TOKENS.items() if fnmatch.fnmatchcase(name, pattern)), None)
    if tokens is None:
        raise ExportError(f"backbone {model}: which special tokens its tokenizer '{name}' adds to a text is not known")
    path = _fetched(model, name) if file is None else file
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise ExportError(f"--tokenizer {path}: can't be read as a Hugging Face {FILE}: {error}") from None
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > text_config["vocab_size"]:
        raise ExportError(
            f"--tokenizer {path}: it has {size:,} tokens, and {model} has embeddings for "
            f"{text_config['vocab_size']:,}: it is not the tokenizer '{name}'"
        )

    def id_of(token: str) -> int:
        token_id = tokenizer.token_to_id(token)
        if token_id is None:
            raise ExportError(f"--tokenizer {path}: it has no token {token}: it is not the tokenizer '{name}'")
        return int(token_id)

    said = text_config.get("tokenizer_kwargs", {})
    return HubTokenizer(
        file=path,
        start_id=None if tokens.start is None else id_of(tokens.start),
        end_id=id_of(tokens.end),
        pad_id=id_of(tokens.pad),
        cleaning=(of_transformers and tokens.of_transformers) or _CLEANINGS[said.get("clean", "whitespace")],
    )


def _fetched(model: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download  # only where a tokenizer is not given

    try:
        check_hub_answers(name, (FILE,))
        return Path(hf_hub_download(name, FILE))
    except Exception as error:  # of whatever the hub's client is built on
        reason = str(error).split("\n")[0]
        raise ExportError(
            f"backbone {model}: its tokenizer can't be fetched ({reason}); get "
            f"https://huggingface.co/{name}/resolve/main/{FILE} elsewhere and give it: --tokenizer {FILE}"
        ) from None
