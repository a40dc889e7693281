"""BERT's uncased word-piece tokenizer as a `tokenizer.json` that the torch-free client reads.

`bert_base_uncased_vocab.txt` is the vocabulary of google-research/bert (Apache 2.0), sha256 07eced375cec...: the one
that BLIP's and BLIP-2's `init_tokenizer` fetches.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from cirrus_client.tokenizer import TextCleaning, TokenizerSpec
from cirrus_export.backbones.backbone import Prompt
from cirrus_export.checkpoints.tokenizer_file import write_tokenizer

CLS, SEP, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"


def write_bert_tokenizer(root: Path, *, context_length: int, prompt: Prompt) -> TokenizerSpec:
    """Write `tokenizer.json` into root and return how to use it."""
    vocabulary = _vocabulary()
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens([CLS, SEP, UNKNOWN, "[PAD]", "[MASK]"])
    spec = prompt.spec(
        context_length=context_length,
        start_id=vocabulary[CLS],
        end_id=vocabulary[SEP],
        cleaning=TextCleaning.NONE,
    )
    write_tokenizer(tokenizer, root / spec.file)
    return spec


def bert_null_token_ids(context_length: int) -> Tensor:
    """Return the empty text, int64 [1, T]."""
    vocabulary = _vocabulary()
    token_ids = torch.zeros(1, context_length, dtype=torch.int64)
    token_ids[0, :2] = torch.tensor([vocabulary[CLS], vocabulary[SEP]])
    return token_ids


def _vocabulary() -> dict[str, int]:
    lines = (files("cirrus_export.backbones") / "bert_base_uncased_vocab.txt").read_text("utf-8").split("\n")
    return {word: number for number, word in enumerate(line for line in lines if line)}
